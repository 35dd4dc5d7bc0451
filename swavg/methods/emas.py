"""The EMA of a series, from its start or from where an earlier one ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from swavg import weights
from swavg.errors import InputError, RequestError
from swavg.methods.additions import check_new
from swavg.methods.recorded import Earlier, EarlierEma, earlier_ema
from swavg.methods.smooth import Smoothing, known
from swavg.planning.policy import Policy
from swavg.planning.row import Path, Request, Row
from swavg.series import Series


def ema(
    series: Series,
    smoothing: Smoothing,
    *,
    policy: Policy,
    resume: Path | None = None,
    again: bool = False,
) -> Request:
    """The EMA of a series; ``resume`` continues an earlier one with its later checkpoints, which
    it does not hold yet unless they are to count ``again``.

    An EMA that is continued equals one done all at once, to the rounding of the file it was kept
    in: keep it in float32 (``Policy(dtype="float32")``). Raises RequestError, and InputError for an
    earlier one that is none or that does not say what is needed.
    """
    if resume is not None:
        return _resumed(series, smoothing, resume, policy, again=again)
    details = smoothing.details(series.steps, len(series))
    row = Row(
        smoothing.weights_at(series.steps), tuple(range(len(series))), "ema", details, name="ema"
    )
    return Request(series.paths, (row,), policy, shared=series.shared)


def _resumed(
    series: Series, smoothing: Smoothing, resume: Path, policy: Policy, *, again: bool
) -> Request:
    average = Earlier.open(resume, policy.key, series.shared)
    path, earlier = average.path, earlier_ema(average)
    _check_same(path, earlier.smoothing, smoothing)
    step = earlier.step
    new = [s for s in series.snapshots if again or step is None or s.step is None or s.step > step]
    if not new:
        raise RequestError(f"No checkpoint is later than step {step}, where {path} ended.")
    later = [snapshot.path for snapshot in new]
    warnings = [] if again else check_new(average, later)
    steps = [snapshot.step for snapshot in new]
    decays = _later_decays(path, earlier, smoothing, steps)
    mass = earlier.mass
    if smoothing.per_step and smoothing.debias and earlier.n == 1:
        # One checkpoint alone stands for a gap as long as the next one's.
        mass = 1 - decays[0]
    details = smoothing.details(steps, earlier.n + len(new))
    if step is not None and "step" in details:
        details["step"] = max(step, *known(steps[-1:]))
    if smoothing.debias:
        details["mass"] = 1 - (1 - mass) * math.prod(decays)
    numbers = weights.resume_with_decays(decays, mass=mass)
    row = Row(numbers, tuple(range(len(numbers))), "ema", details, of_averages=True, name="ema")
    left = len(series) - len(new)
    note = f"left out {left} up to step {step}, which the EMA holds already"
    return Request(
        (path, *later),
        (row,),
        replace(policy, mixed_dtypes=True),
        (note,) if left else (),
        tuple(warnings),
        series.shared,
    )


def _check_same(path: str, was: Smoothing, now: Smoothing) -> None:
    for name, before, after in (
        ("decay", was.decay, now.decay),
        ("per_step", was.per_step, now.per_step),
        ("debias", was.debias, now.debias),
    ):
        if abs(before - after) >= 1e-12:
            raise RequestError(f"{path} was made with {name} {before}, not {after}.")
    if was.warmup != now.warmup:
        raise RequestError(f"{path} was made with warm-up {was.warmup}.")


def _later_decays(
    path: str, earlier: EarlierEma, smoothing: Smoothing, steps: Sequence[int | None]
) -> tuple[float, ...]:
    """The decay with which each checkpoint at ``steps`` is added to the earlier EMA."""
    if not smoothing.per_step:
        return smoothing.decays(len(steps), start=earlier.n)
    if earlier.step is None:
        raise InputError(path, "does not say at which step it ended")
    return weights.decays_by_step((earlier.step, *known(steps)), smoothing.decay)
