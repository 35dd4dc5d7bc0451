"""The straight line between two checkpoints, or through several in turn, and its survey."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from swavg.engine.recipe import short_names
from swavg.errors import RequestError
from swavg.evaluation.landscape.grid import spaced
from swavg.evaluation.landscape.products import Names, OnRead, offset_products
from swavg.evaluation.survey import (
    VALUES,
    Point,
    Survey,
    cache_key,
    number_text,
)
from swavg.formats.checkpoint import Checkpoint
from swavg.short_repr import one_line

COLUMNS = ("t", "name", "distance", *VALUES)

MEAN = "mean"

# Nearer than this, a point is the checkpoint (or mean) beside it.
_SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Route:
    """The line through checkpoints 0, 1, ...: at t, 1 - t of one and t of the next.

    ``ts`` ascend and have every checkpoint and the middle between each two. ``lengths`` are the
    distances from each checkpoint to the next.
    """

    names: tuple[str, ...]
    lengths: tuple[float, ...]
    ts: tuple[float, ...]

    def coefficients(self, t: float) -> tuple[float, ...]:
        """Of every checkpoint at ``t``; their sum is 1. Beyond the ends the line goes on."""
        count = len(self.names)
        segment = min(max(math.floor(t), 0), count - 2)
        part = t - segment
        found = [0.0] * count
        found[segment], found[segment + 1] = 1 - part, part
        return tuple(found)

    def distance(self, t: float) -> float:
        """From the first checkpoint along the line; negative before it."""
        segment = min(max(math.floor(t), 0), len(self.lengths) - 1)
        return math.fsum(self.lengths[:segment]) + (t - segment) * self.lengths[segment]

    def name(self, t: float) -> str:
        if t == int(t) and 0 <= t < len(self.names):
            return self.names[int(t)]
        return MEAN if len(self.names) == 2 and t == 0.5 else ""


def route(
    checkpoints: Sequence[Checkpoint],
    names: Names,
    *,
    points: int,
    start: float,
    end: float,
    on_read: OnRead | None = None,
) -> Route:
    """``points`` from ``start`` before the first checkpoint to ``end`` past the last but one, the
    checkpoints themselves (``start`` 0 and ``end`` 1: from the first to the last), and the middle
    between each and the next, so that no barrier is judged by its ends.

    Raises RequestError, and what :func:`offset_products` raises.
    """
    count = len(checkpoints)
    if count < 2:
        raise RequestError("a line goes through two checkpoints or more; one was given.")
    if points < 2:
        raise RequestError(f"is {points}; a line needs two.", argument="points")
    if not (-math.inf < start <= 0 and 1 <= end < math.inf):
        raise RequestError(
            f"start={start:g} end={end:g} leaves out a checkpoint; they lie at 0 and 1.",
            hint="Give start=0 or less, and end=1 or more.",
        )
    shown = [one_line(name) for name in short_names([each.path for each in checkpoints])]
    lengths: list[float] = []
    for index in range(count - 1):
        pair = checkpoints[index : index + 2]

        def counted(read: int, whole: int, before: int = index) -> None:
            if on_read is not None:
                on_read(before * whole + read, (count - 1) * whole)

        square = float(offset_products(pair, names, counted)[1, -1])
        if square == 0:
            raise RequestError(
                f"{shown[index]} and {shown[index + 1]} have the same weights: there is no line"
                " between them."
            )
        lengths.append(math.sqrt(square))
    fixed = [index / 2 for index in range(2 * count - 1)]
    between = [
        t
        for t in spaced(start, count - 2 + end, points)
        if all(abs(t - knot) > _SAME for knot in fixed)
    ]
    return Route(tuple(shown), tuple(lengths), tuple(sorted([*fixed, *between])))


def survey_of(
    found: Route, checkpoints: Sequence[Checkpoint], scores: Mapping[str, object]
) -> Survey:
    """The points along the line; before them, of more than two, the mean of all. ``scores`` says
    what scores depend on."""
    named = [*zip(found.names, checkpoints, strict=True)]
    key = cache_key("path", named, {"lengths": list(found.lengths), **scores})
    count = len(found.names)
    points = []
    if count > 2:
        points.append(Point(("", MEAN, ""), (1 / count,) * count))
    points += [
        Point(
            (number_text(t), found.name(t), number_text(found.distance(t))), found.coefficients(t)
        )
        for t in found.ts
    ]
    return Survey(key, COLUMNS, tuple(points))
