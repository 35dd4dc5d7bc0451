"""Running means: updated, moved on as a window, and the mean between two of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from swavg import weights
from swavg.averaging import prepare_many
from swavg.job import Job, Path, Wanted
from swavg.methods.recorded import counted, key_of
from swavg.policy import Policy


def update(
    average: Path, new: Sequence[Path], *, output: Path | None, count: int | None = None, **run: Any
) -> Job:
    """Running SWA: ``average`` of n checkpoints, and ``new`` ones: the mean of all.

    n is read from the average's recipe unless ``count`` gives it. Kept in float32 unless the
    policy says otherwise, so that it does not drift.
    """
    n = counted(average, count, key_of(run))
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
    n = counted(average, count, key_of(run))
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
        s, e = (float(counted(path, None, key_of(run), "--counts S E")) for path in (start, end))
    else:
        s, e = counts
    n = e - s
    details = {"n": int(n) if n == int(n) else n}
    wanted = Wanted(output, weights.window(s, e), None, "window", details)
    return prepare_many([start, end], [wanted], **in_float32(run))[0]


def in_float32(run: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments, with a policy that keeps the output in float32 unless it says more."""
    policy = run.get("policy") or Policy()
    if policy.dtype == "keep":
        policy = replace(policy, dtype="float32")
    # The average is wider than the checkpoints that are added to it.
    return {**run, "policy": replace(policy, mixed_dtypes=True)}
