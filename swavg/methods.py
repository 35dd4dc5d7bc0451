"""Averaging methods over a series: each decides weights and what is recorded, nothing more.

Every function returns jobs that have decided everything and written nothing; ``job.run()`` or
``swavg.averaging.run_together(jobs)`` does them.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from swavg import weights
from swavg.averaging import Job, Path, Wanted, prepare_many
from swavg.errors import InputError, RequestError
from swavg.plan import Policy
from swavg.recipe import recipe_of as recipe_of
from swavg.series import Series, Snapshot, select

Unit = Literal["checkpoints", "steps"]


@dataclass(frozen=True, slots=True)
class Smoothing:
    """An EMA: ``decay`` per checkpoint, or per training step with ``per_step``; ``debias`` starts
    it from zero, corrected, instead of from the first checkpoint; ``warmup`` names a schedule of
    :data:`swavg.weights.WARMUPS`."""

    decay: float
    per_step: bool = False
    debias: bool = False
    warmup: str | None = None

    def __post_init__(self) -> None:
        if self.warmup is not None and (self.per_step or self.debias):
            raise RequestError("A warm-up goes with neither --per-step nor --debias.")

    def over(self, steps: Sequence[int | None]) -> tuple[float, ...]:
        """The weights of checkpoints at ``steps``, oldest first. Raises RequestError."""
        if self.warmup is not None:
            return weights.ema_warmup(len(steps), self.decay, self.warmup)
        if self.per_step:
            return weights.ema_by_step(known(steps), self.decay, debias=self.debias)
        return weights.ema(len(steps), self.decay, debias=self.debias)

    def _mass(self, steps: Sequence[int | None]) -> float:
        if not self.per_step:
            return weights.debias_mass((self.decay,) * (len(steps) - 1), first=self.decay)
        decays = weights.decays_by_step(known(steps), self.decay)
        return weights.debias_mass(decays) if decays else 1.0

    def details(self, steps: Sequence[int | None], n: int) -> dict[str, Any]:
        """What an output records, so that :func:`ema` can go on from it."""
        recorded: dict[str, Any] = {"n": n, "decay": self.decay, "per_step": self.per_step}
        if self.debias:
            recorded["debias"] = True
            recorded["mass"] = self._mass(steps)
        if self.warmup is not None:
            recorded["warmup"] = self.warmup
        return recorded | last_step(steps)


def known(steps: Sequence[int | None]) -> tuple[int, ...]:
    """The steps, all of which must be known; RequestError otherwise."""
    found = [step for step in steps if step is not None]
    if len(found) != len(steps):
        raise RequestError(
            f"{len(steps) - len(found)} of {len(steps)} checkpoints have no known step.",
            hint="Put the step into their names (step-1000.pt), or count in checkpoints.",
        )
    return tuple(found)


def last_step(steps: Sequence[int | None]) -> dict[str, Any]:
    """``{"step": the last}``, empty if it is not known."""
    return {} if not steps or steps[-1] is None else {"step": steps[-1]}


def amount(text: str, steps: Sequence[int | None]) -> tuple[float, Unit]:
    """``2000steps`` or ``3checkpoints`` (a bare number counts steps where all are known)."""
    found = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(steps?|checkpoints?|ckpts?)?\s*", text)
    try:
        value = float(found[1]) if found is not None else float("nan")
    except ValueError:
        value = float("nan")
    if found is None or value != value:
        raise RequestError(f"'{text}' is no number of steps or checkpoints.",
                           hint="Write 2000steps or 3checkpoints.")  # fmt: skip
    if found[2] is None:
        return value, "steps" if all(step is not None for step in steps) else "checkpoints"
    return value, "steps" if found[2].startswith("step") else "checkpoints"


def smoothing(
    steps: Sequence[int | None],
    *,
    decay: float | None = None,
    half_life: str | None = None,
    span: str | None = None,
    per_step: bool = False,
    debias: bool = False,
    warmup: str | None = None,
    counting: str | None = "step",
) -> Smoothing:
    """The EMA that exactly one of ``decay``, ``half_life`` and ``span`` describes.

    ``half_life`` and ``span`` are amounts (:func:`amount`). ``counting`` is the unit of the steps
    (``Series.unit``). Raises RequestError.
    """
    if sum(value is not None for value in (decay, half_life, span)) != 1:
        raise RequestError("Give one of --decay, --half-life and --span.")
    if decay is not None:
        return Smoothing(decay, per_step, debias, warmup)
    text = half_life if half_life is not None else span
    assert text is not None
    value, unit = amount(text, steps)
    if unit == "steps" and "step" in text and counting not in (None, "step"):
        raise RequestError(
            f"'{text}' is in steps, but the checkpoints count {counting}s.",
            hint=f"Leave the word out to count {counting}s, or count in checkpoints.",
        )
    if per_step and unit == "checkpoints":
        raise RequestError("--per-step counts steps; the amount is in checkpoints.")
    found = (
        weights.decay_from_half_life(value)
        if half_life is not None
        else weights.decay_from_span(value)
    )
    return Smoothing(found, unit == "steps", debias, warmup)


def ema(
    series: Series, how: Smoothing, *, output: Path | None, resume: Path | None = None, **run: Any
) -> Job:
    """The EMA of a series; ``resume`` continues an earlier one with its later checkpoints.

    An EMA that is continued equals one done all at once, to the rounding of the file it was kept
    in: keep it in float32 (``Policy(dtype="float32")``). ``run`` are arguments of
    :func:`swavg.averaging.prepare_many`. Raises RequestError, InputError and what that raises.
    """
    if resume is None:
        details = how.details(series.steps, len(series))
        wanted = Wanted(output, how.over(series.steps), None, "ema", details)
        return prepare_many(series.paths, [wanted], **run)[0]
    earlier = recorded(resume, "ema", _key(run))
    for name, value in (("decay", how.decay), ("per_step", how.per_step), ("debias", how.debias)):
        was = earlier.get(name, False)
        if was != value and not (name == "decay" and abs(was - value) < 1e-12):
            raise RequestError(f"{os.fspath(resume)} was made with {name} {was}, not {value}.")
    if earlier.get("warmup") != how.warmup:
        raise RequestError(f"{os.fspath(resume)} was made with warm-up {earlier.get('warmup')}.")
    held = int(earlier["n"])
    step = earlier.get("step")
    new = [s for s in series.snapshots if step is None or s.step is None or s.step > step]
    if not new:
        raise RequestError(
            f"No checkpoint is later than step {step}, where {os.fspath(resume)} ended."
        )
    steps = [snapshot.step for snapshot in new]
    before = float(earlier.get("mass", 1.0))
    if how.warmup is not None:
        decays = weights.warmup_decays(how.warmup, len(new), how.decay, start=held)
    elif how.per_step:
        if step is None:
            raise InputError(resume, "does not say at which step it ended")
        decays = weights.decays_by_step((step, *known(steps)), how.decay)
        if how.debias and held == 1:
            # One checkpoint alone stands for a gap as long as the next one's.
            before = 1 - decays[0]
    else:
        decays = (how.decay,) * len(new)
    numbers = weights.resume_with_decays(decays, mass=before)
    details = how.details(steps, held + len(new))
    if how.debias:
        details["mass"] = 1 - (1 - before) * math.prod(decays)
    wanted = Wanted(output, numbers, None, "ema", details)
    policy = replace(run.get("policy") or Policy(), mixed_dtypes=True)
    paths = [resume, *(s.path for s in new)]
    job = prepare_many(paths, [wanted], **{**run, "policy": policy})[0]
    if len(new) < len(series):
        left = len(series) - len(new)
        note = f"left out {left} up to step {step}, which the EMA holds already"
        job = replace(job, notes=(*job.notes, note))
    return job


def update(
    average: Path, new: Sequence[Path], *, output: Path | None, count: int | None = None, **run: Any
) -> Job:
    """Running SWA: ``average`` of n checkpoints, and ``new`` ones: the mean of all.

    n is read from the average's recipe unless ``count`` gives it. Kept in float32 unless the
    policy says otherwise, so that it does not drift.
    """
    n = counted(average, count, _key(run))
    details = {"n": n + len(new)}
    wanted = Wanted(output, weights.running(n, len(new)), None, "running mean", details)
    return prepare_many([average, *new], [wanted], **in_float32(run))[0]


def slide(
    average: Path,
    add: Sequence[Path],
    drop: Sequence[Path],
    *,
    output: Path | None,
    count: int | None = None,
    **run: Any,
) -> Job:
    """A window moved on: the mean ``average`` with ``add`` let in and ``drop`` let out."""
    n = counted(average, count, _key(run))
    numbers = weights.slide(n, len(add), len(drop))
    details = {"n": n + len(add) - len(drop)}
    # The order also decides the template: the newest comes last.
    inputs = [*drop, average, *add]
    numbers = (*numbers[1 + len(add) :], numbers[0], *numbers[1 : 1 + len(add)])
    wanted = Wanted(output, numbers, None, "sliding mean", details)
    return prepare_many(inputs, [wanted], **in_float32(run))[0]


def window(
    start: Path,
    end: Path,
    *,
    output: Path | None,
    counts: tuple[float, float] | None = None,
    **run: Any,
) -> Job:
    """The mean over what lies between two running averages (icefall): ``(a_e e - a_s s)/(e - s)``.

    ``counts`` are s and e; by default the ``n`` of the two recipes.
    """
    if counts is None:
        s, e = (float(counted(path, None, _key(run), "--counts S E")) for path in (start, end))
    else:
        s, e = counts
    n = e - s
    details = {"n": int(n) if n == int(n) else n}
    wanted = Wanted(output, weights.window(s, e), None, "window", details)
    return prepare_many([start, end], [wanted], **in_float32(run))[0]


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
    gammas = _gammas(series.snapshots, profiles, _key(run))
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


@dataclass(frozen=True, slots=True)
class SweepRecipe:
    """One average of a sweep, as ``uniform:last=5`` or ``ema:half-life=2000steps,to-step=9000``."""

    text: str
    method: Literal["uniform", "ema"]
    options: Mapping[str, str]

    @property
    def name(self) -> str:
        """A file name that says what it is: ``uniform-last-5``."""
        return re.sub(r"[^A-Za-z0-9._]+", "-", self.text).strip("-")


_CHOICES = {"last": int, "from-step": int, "to-step": int, "every": int, "best": int,
            "metric": str, "mode": str}  # fmt: skip
_SMOOTHING = ("decay", "half-life", "span", "warmup")
_FLAGS = ("debias", "per-step", "at-most")


def sweep_recipe(text: str) -> SweepRecipe:
    """Parse a recipe. Raises RequestError, naming what can be said."""
    method, _, rest = text.partition(":")
    options: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        key = key.strip()
        if key in _FLAGS and not equals:
            options[key] = ""
        elif equals and (key in _CHOICES or (method == "ema" and key in _SMOOTHING)):
            options[key] = value.strip()
        else:
            raise RequestError(
                f"Recipe '{text}': '{part}' is not understood.",
                hint=f"A {method} recipe takes {', '.join((*_CHOICES, *_SMOOTHING, *_FLAGS))}.",
            )
    if method not in ("uniform", "ema"):
        raise RequestError(
            f"Recipe '{text}': there is no method '{method}'.",
            hint="Write uniform:last=5 or ema:half-life=2000steps.",
        )
    return SweepRecipe(text, "uniform" if method == "uniform" else "ema", options)


def sweep(
    series: Series, recipes: Sequence[SweepRecipe], outputs: Sequence[Path | None], **run: Any
) -> list[Job]:
    """Many averages of one series, one job each, for one read of the inputs."""
    wanted = []
    for recipe, output in zip(recipes, outputs, strict=True):
        try:
            picked = _picked(series, recipe)
            members = tuple(series.paths.index(path) for path in picked.paths)
            numbers, details = _weighed(picked, recipe)
        except RequestError as error:
            raise RequestError(
                f"Recipe '{recipe.text}': {error.message}", hint=error.hint
            ) from None
        method = "mean" if recipe.method == "uniform" else "ema"
        wanted.append(Wanted(output, numbers, members, method, details))
    used = sorted({member for each in wanted for member in each.members or ()})
    places = {member: place for place, member in enumerate(used)}
    wanted = [
        replace(each, members=tuple(places[member] for member in each.members or ()))
        for each in wanted
    ]
    return prepare_many([series.paths[member] for member in used], wanted, **run)


def _picked(series: Series, recipe: SweepRecipe) -> Series:
    chosen: dict[str, Any] = {}
    for key, kind in _CHOICES.items():
        if key in recipe.options:
            try:
                chosen[key.replace("-", "_")] = kind(recipe.options[key])
            except ValueError:
                raise RequestError(f"{key}={recipe.options[key]} is no whole number.") from None
    return select(series, at_most="at-most" in recipe.options, **chosen) if chosen else series


def _weighed(picked: Series, recipe: SweepRecipe) -> tuple[tuple[float, ...], dict[str, Any]]:
    if recipe.method == "uniform":
        return weights.mean(len(picked)), {"n": len(picked)} | last_step(picked.steps)
    options = recipe.options
    try:
        decay = float(options["decay"]) if "decay" in options else None
    except ValueError:
        raise RequestError(f"decay={options['decay']} is no number.") from None
    how = smoothing(
        picked.steps,
        decay=decay,
        half_life=options.get("half-life"),
        span=options.get("span"),
        per_step="per-step" in options,
        debias="debias" in options,
        warmup=options.get("warmup"),
        counting=picked.unit,
    )
    return how.over(picked.steps), how.details(picked.steps, len(picked))


def is_number(value: object) -> bool:
    """True for a finite number that is no bool: metadata may hold anything."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return is_number(value) and value >= 1 and value == int(value)


def recorded(path: Path, method: str, key: str | None = None) -> dict[str, Any]:
    """The recipe of an EMA that can be continued; InputError if it is none."""
    found = recipe_of(path, key)
    whole = (
        _is_count(found.get("n"))
        and is_number(found.get("decay"))
        and (found.get("step") is None or is_number(found["step"]))
        and is_number(found.get("mass", 1.0))
    )
    if found.get("method") != method or not whole:
        raise InputError(
            path,
            f"is no {method} that swavg wrote: its metadata has no such recipe",
            hint=f"It says {found['method']}." if "method" in found else None,
        )
    return found


def counted(path: Path, count: int | None, key: str | None = None, option: str = "--count") -> int:
    """Of how many checkpoints ``path`` is the mean: ``count``, else as recorded."""
    if count is not None:
        if count < 1:
            raise RequestError(f"A mean of {count} checkpoints is none.")
        return count
    found = recipe_of(path, key)
    means = ("mean", "running mean", "sliding mean", "window")
    if found.get("method") not in means or not _is_count(found.get("n")):
        raise InputError(
            path,
            "does not say of how many checkpoints it is the mean",
            hint=f"Give the number with {option}.",
        )
    return int(found["n"])


def _key(run: Mapping[str, Any]) -> str | None:
    policy = run.get("policy")
    return policy.key if isinstance(policy, Policy) else None


def in_float32(run: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments, with a policy that keeps the output in float32 unless it says more."""
    policy = run.get("policy") or Policy()
    if policy.dtype == "keep":
        policy = replace(policy, dtype="float32")
    # The average is wider than the checkpoints that are added to it.
    return {**run, "policy": replace(policy, mixed_dtypes=True)}
