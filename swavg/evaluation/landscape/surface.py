"""What a survey of a plane found: a value for each point of a grid, and points with names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from swavg.analysis.chunks import Array
from swavg.errors import NumericsError
from swavg.evaluation.landscape.grid import Grid
from swavg.evaluation.landscape.levels import BANDS, Levels, make_levels, range_text
from swavg.evaluation.landscape.plane import Position
from swavg.evaluation.survey import Metric, scale


@dataclass(frozen=True, slots=True)
class Place:
    """A named point: a ``corner``, the ``average`` of the three, a ``mark`` or one of a ``trail``.

    ``loss`` and ``error`` (a share of 1) are None where they were not computed.
    """

    kind: Literal["corner", "average", "mark", "trail"]
    name: str
    position: Position
    loss: float | None = None
    error: float | None = None


@dataclass(frozen=True, eq=False)
class Surface:
    """Values on a grid, of shape (rows of y, columns of x), each over so many ``examples``;
    ``error`` is None if there is none."""

    grid: Grid
    loss: Array
    error: Array | None
    places: tuple[Place, ...]
    examples: int | None = None

    def values(self, metric: Metric) -> Array:
        """Raises NumericsError if the survey has no such value."""
        found = self.loss if metric == "loss" else self.error
        if found is None:
            raise NumericsError(
                "the survey has no error rate.",
                hint="It is counted for logits of classes and integer targets; use metric='loss'.",
            )
        return found

    def lowest(self, metric: Metric) -> tuple[float, float, float]:
        """x, y and value of the lowest point of the grid; NaN if none is finite."""
        values = self.values(metric)
        if not np.isfinite(values).any():
            return math.nan, math.nan, math.nan
        row, column = np.unravel_index(
            int(np.argmin(np.where(np.isfinite(values), values, np.inf))), values.shape
        )
        return self.grid.xs[column], self.grid.ys[row], float(values[row, column])

    def levels(self, metric: Metric, bands: int = BANDS) -> Levels:
        """The levels that a picture of ``metric`` has; percent for errors."""
        return make_levels(self.values(metric) * scale(metric), bands)

    def range_text(self, metric: Metric) -> str:
        """From where to where values go on the grid; ``flat`` if that is hardly anywhere."""
        unit = "%" if metric == "error" else ""
        return range_text(self.values(metric) * scale(metric), unit)

    @property
    def corners(self) -> tuple[Position, ...]:
        return tuple(place.position for place in self.places if place.kind == "corner")

    @property
    def far(self) -> float:
        """The distance from the plane beyond which a projection says little: a tenth of that
        between the corners."""
        return 0.1 * max(math.hypot(at.x, at.y) for at in self.corners)

    def is_off(self, distance: float) -> bool:
        """Whether a ``distance`` from the plane is worth a word."""
        return distance > self.far / 10

    @property
    def named(self) -> tuple[Place, ...]:
        return tuple(place for place in self.places if place.kind != "trail")

    @property
    def trail(self) -> tuple[Place, ...]:
        return tuple(place for place in self.places if place.kind == "trail")
