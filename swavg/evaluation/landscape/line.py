"""What a survey of a line found: its values, the barriers between checkpoints, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from swavg.errors import NumericsError
from swavg.evaluation.landscape.route import Route
from swavg.evaluation.survey import Metric, Value


@dataclass(frozen=True, slots=True)
class Barrier:
    """Between checkpoints ``index`` and the next: the largest ``height`` of a value above the
    straight line between the values at the ends (Entezari et al. 2022), at ``t``;
    0 at the ends if it is nowhere above. ``over_mean`` is the largest value less the mean of the
    ends (Frankle et al. 2020, section 2)."""

    index: int
    height: float
    t: float
    over_mean: float


@dataclass(frozen=True)
class Line:
    """What was found along a route: ``values`` at its ``ts``, and that of the ``mean`` of all."""

    route: Route
    values: tuple[Value, ...]
    mean: Value

    @property
    def judged(self) -> bool:
        """Whether there are error rates."""
        return all(value.error is not None for value in self.values)

    def series(self, metric: Metric) -> tuple[float, ...]:
        """The values along the line; NaN where there is none."""
        return tuple(value.of(metric) for value in self.values)

    def at(self, index: int, metric: Metric) -> float:
        """The value at checkpoint ``index``."""
        return self.series(metric)[self.route.ts.index(float(index))]

    def barriers(self, metric: Metric) -> tuple[Barrier, ...]:
        return tuple(self._barrier(index, metric) for index in range(len(self.route.names) - 1))

    def _barrier(self, index: int, metric: Metric) -> Barrier:
        first, second = self.at(index, metric), self.at(index + 1, metric)
        highest, at, top = 0.0, float(index), -math.inf
        for t, value in zip(self.route.ts, self.series(metric), strict=True):
            if not index <= t <= index + 1:
                continue
            # What is not a number is as high as can be.
            value = math.inf if math.isnan(value) else value
            part = t - index
            height = value - ((1 - part) * first + part * second)
            top = max(top, value - (first + second) / 2)
            if height > highest:
                highest, at = height, t
        return Barrier(index, highest, at, top)


def line_of(found: Route, values: Sequence[Value]) -> Line:
    """Raises NumericsError if a checkpoint itself has no finite loss."""
    count = len(found.names)
    if count > 2:
        mean, along = values[0], tuple(values[1:])
    else:
        along = tuple(values)
        mean = along[found.ts.index(0.5)]
    line = Line(found, along, mean)
    for index, name in enumerate(found.names):
        if not math.isfinite(line.at(index, "loss")):
            raise NumericsError(
                f"{name}: its loss is {line.at(index, 'loss')}.",
                hint="Does the model with this checkpoint give numbers on this data at all? After a"
                " change in your code, use anew=True.",
            )
    return line


# Beyond the ends, what rises by more than this many times the range between them is cut.
_HIGHEST = 4.0


def extent(line: Line, metric: Metric) -> tuple[float, float]:
    """The lowest and the highest value to show, which differ: all that lies between the
    checkpoints, and what is beyond the ends unless it would leave no room for that."""
    values = line.series(metric)
    last = len(line.route.names) - 1
    inside = [value for t, value in zip(line.route.ts, values, strict=True) if 0 <= t <= last]
    inside.append(line.mean.of(metric))
    low = min(filter(math.isfinite, inside))
    high = max(filter(math.isfinite, inside))
    room = high - low or abs(high) * 0.1 or 1.0
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(low, *finite), min(max(high, *finite), high + _HIGHEST * room)
    return (low, high) if high > low else (low - room / 2, high + room / 2)


# Up to this share of wrong answers more, runs count as connected (Frankle et al. 2020, section 2).
TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class Verdict:
    """``safe``: the mean may be expected to be no worse than what it is made of."""

    safe: bool
    text: str


def verdict(line: Line) -> Verdict:
    """No barrier where it is below 2 % of error, or without classes 2 % of the ends' loss; and the
    mean is no worse than the worst of the checkpoints by more than that."""
    metric: Metric = "error" if line.judged else "loss"
    ends = [line.at(index, metric) for index in range(len(line.route.names))]
    allowed = TOLERANCE if metric == "error" else TOLERANCE * max(map(abs, ends))
    worst = max(line.barriers(metric), key=lambda barrier: barrier.height)
    mean = line.mean.of(metric)
    if worst.height > allowed:
        return Verdict(False, "a barrier: do not average these")
    if not mean <= max(ends) + allowed:
        return Verdict(False, "no barrier, but the mean is worse than all of them")
    if mean < min(ends):
        by = " in error rate" if metric == "error" else ""
        return Verdict(True, f"no barrier: averaging is safe, and the mean is better than all{by}")
    return Verdict(True, "no barrier: averaging is safe")
