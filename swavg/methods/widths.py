"""EMAs of any width after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from swavg import weights
from swavg.averaging import prepare_many
from swavg.errors import InputError, RequestError
from swavg.job import Job, Path, Wanted
from swavg.methods.recorded import is_number, key_of
from swavg.methods.smooth import known
from swavg.recipe import recipe_of
from swavg.series import Series, Snapshot


def posthoc(
    series: Series,
    sigma_rels: Sequence[float],
    outputs: Sequence[Path | None],
    *,
    profiles: Sequence[float] = (),
    at_step: int | None = None,
    **run: Any,
) -> list[Job]:
    """Post-hoc EMAs (Karras et al. 2024, section 3.2) of the widths ``sigma_rels``, one job each.

    The snapshots' own relative widths are ``profiles`` (one for all, or one each), or in their
    recipes. ``at_step`` is the step of the EMA, by default the last. Raises RequestError.
    """
    steps = known(series.steps)
    gammas = _gammas(series.snapshots, profiles, key_of(run))
    target = max(steps) if at_step is None else at_step
    wanted = []
    for sigma_rel, output in zip(sigma_rels, outputs, strict=True):
        gamma = weights.gamma_from_sigma_rel(sigma_rel)
        numbers = weights.posthoc(steps, gammas, target, gamma)
        details = {"profile": {"sigma_rel": sigma_rel, "gamma": gamma}, "step": target}
        # Snapshots after the target are no part of it, not parts of weight 0.
        members = tuple(i for i, step in enumerate(steps) if step <= target)
        wanted.append(
            Wanted(output, tuple(numbers[i] for i in members), members, "posthoc", details)
        )
    return prepare_many(series.paths, wanted, **run)


def _gammas(
    snapshots: Sequence[Snapshot], profiles: Sequence[float], key: str | None
) -> list[float]:
    if profiles:
        if len(profiles) not in (1, len(snapshots)):
            raise RequestError(f"{len(profiles)} profiles for {len(snapshots)} snapshots.")
        given = list(profiles) * (len(snapshots) if len(profiles) == 1 else 1)
        return [weights.gamma_from_sigma_rel(width) for width in given]
    found = []
    for snapshot in snapshots:
        profile = recipe_of(snapshot.path, key).get("profile")
        if not isinstance(profile, Mapping) or not is_number(profile.get("gamma")):
            raise InputError(
                snapshot.path,
                "does not say of which profile it is an EMA",
                hint="Give the relative width of the snapshots with --profile.",
            )
        found.append(float(profile["gamma"]))
    return found
