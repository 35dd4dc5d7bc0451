"""EMAs of any width after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from swavg import weights
from swavg.engine.recipe import recipe_of
from swavg.errors import InputError, RequestError
from swavg.formats.tensors import Shared
from swavg.methods.recorded import is_number
from swavg.methods.smooth import known
from swavg.planning.policy import Policy
from swavg.planning.row import Request, Row
from swavg.series import Series


def posthoc(
    series: Series,
    sigma_rels: Sequence[float],
    *,
    policy: Policy,
    profiles: Sequence[float] = (),
    at_step: int | None = None,
) -> Request:
    """Post-hoc EMAs (Karras et al. 2024, section 3.2) of the widths ``sigma_rels``, one row each.

    The snapshots' own relative widths are ``profiles`` (one for all, or one each), or in their
    recipes. ``at_step`` is the step of the EMA, by default the last. Raises RequestError, and
    InputError for a snapshot that does not say its width.
    """
    steps = known(series.steps)
    if profiles:
        gammas = _given_gammas(profiles, len(series))
    else:
        gammas = [_recorded_gamma(path, policy.key, series.shared) for path in series.paths]
    target = max(steps) if at_step is None else at_step
    # Snapshots after the target are no part of it, not parts of weight 0.
    members = tuple(index for index, step in enumerate(steps) if step <= target)
    rows = []
    for sigma_rel in sigma_rels:
        gamma = weights.gamma_from_sigma_rel(sigma_rel)
        numbers = weights.posthoc(steps, gammas, target, gamma)
        details = {"profile": {"sigma_rel": sigma_rel, "gamma": gamma}, "step": target}
        held = tuple(numbers[i] for i in members)
        rows.append(Row(held, members, "posthoc", details, of_averages=True, name="posthoc"))
    return Request(series.paths, tuple(rows), policy, shared=series.shared)


def _given_gammas(profiles: Sequence[float], count: int) -> list[float]:
    if len(profiles) not in (1, count):
        raise RequestError(f"{len(profiles)} profiles for {count} snapshots.")
    widths = list(profiles) * (count if len(profiles) == 1 else 1)
    return [weights.gamma_from_sigma_rel(width) for width in widths]


def _recorded_gamma(path: str, key: str | None, shared: Shared) -> float:
    profile = recipe_of(path, key, shared).get("profile")
    gamma = profile.get("gamma") if isinstance(profile, Mapping) else None
    if not is_number(gamma):
        raise InputError(
            path,
            "does not say of which profile it is an EMA",
            hint="Give the relative width of the snapshots with profiles=.",
        )
    return float(gamma)
