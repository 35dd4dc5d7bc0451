"""Running means: updated, moved on as a window, and the mean between two of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from swavg import weights
from swavg.formats.tensors import Shared
from swavg.methods.additions import check_dropped, check_new
from swavg.methods.recorded import Earlier, counted
from swavg.planning.policy import Policy
from swavg.planning.row import Path, Request, Row

_RUNNING = "model_avg"
"""Where icefall keeps the running average beside the weights."""


def update(
    average: Path,
    new: Sequence[Path],
    *,
    policy: Policy,
    count: int | None = None,
    again: bool = False,
) -> Request:
    """Running SWA: ``average`` of n checkpoints, and ``new`` ones: the mean of all.

    n is read from the average's recipe unless ``count`` gives it. Kept in float32 unless the
    policy says otherwise, so that it does not drift. Raises RequestError, also for one that the
    average holds already (unless it is to count ``again``), and InputError where n is not known.
    """
    earlier = Earlier.open(average, policy.key)
    n = counted(earlier, count)
    warnings = [] if again else check_new(earlier, new)
    numbers = weights.running(n, len(new))
    request = _request([average, *new], numbers, "running mean", n + len(new), policy)
    return replace(request, warnings=tuple(warnings), shared=earlier.shared)


def slide(
    average: Path,
    add: Sequence[Path],
    drop: Sequence[Path],
    *,
    policy: Policy,
    count: int | None = None,
    again: bool = False,
) -> Request:
    """A window moved on: the mean ``average`` with ``add`` let in and ``drop`` let out.

    Otherwise as :func:`update`.
    """
    earlier = Earlier.open(average, policy.key)
    n = counted(earlier, count)
    warnings = [] if again else check_new(earlier, add)
    warnings += check_dropped(earlier, drop)
    held, *others = weights.slide(n, len(add), len(drop))
    # The order also decides the template: the newest comes last.
    numbers = (*others[len(add) :], held, *others[: len(add)])
    left = n + len(add) - len(drop)
    request = _request([*drop, average, *add], numbers, "sliding mean", left, policy)
    return replace(request, warnings=tuple(warnings), shared=earlier.shared)


def window(
    start: Path, end: Path, *, policy: Policy, counts: tuple[float, float] | None = None
) -> Request:
    """The mean over what lies between two running averages (icefall): ``(a_e e - a_s s)/(e - s)``.

    ``counts`` are s and e, in checkpoints or steps; by default the ``n`` of the two recipes, or
    icefall's ``batch_idx_train``, of which ``model_avg`` is the average. Otherwise as
    :func:`update`.
    """
    shared = Shared()
    means = [Earlier.open(path, policy.key, shared) for path in (start, end)]
    warnings: tuple[str, ...] = ()
    if policy.key is None and all(_RUNNING in mean.extras.siblings for mean in means):
        policy = replace(policy, key=_RUNNING)
        if not policy.weights_only:
            warnings = (
                f"the window is of '{_RUNNING}' alone: whatever else the output holds is that of"
                f" {os.fspath(end)} (--weights-only writes nothing else)",
            )
    # What swavg wrote keeps icefall's count of the last input, and has one of its own.
    steps = [mean.steps for mean in means if mean.steps and "method" not in mean.recipe]
    if counts is not None:
        s, e = counts
    elif policy.key == _RUNNING and len(steps) == len(means):
        s, e = map(float, steps)
    else:
        s, e = (float(counted(mean, None, "counts")) for mean in means)
    request = _request([start, end], weights.window(s, e), "window", e - s, policy, "window")
    return replace(request, shared=shared, warnings=warnings)


def _request(
    inputs: Sequence[Path],
    numbers: tuple[float, ...],
    method: str,
    n: float,
    policy: Policy,
    name: str = "updated",
) -> Request:
    """One row over all inputs, recorded as a mean of ``n``, in float32 unless told otherwise."""
    details = {"n": int(n) if n == int(n) else n}
    row = Row(numbers, tuple(range(len(inputs))), method, details, of_averages=True, name=name)
    dtype = "float32" if policy.dtype == "keep" else policy.dtype
    # The average is wider than the checkpoints that are added to it.
    policy = replace(policy, dtype=dtype, mixed_dtypes=True)
    return Request(tuple(os.fspath(path) for path in inputs), (row,), policy)
