"""What a survey of a plane found: a value for each point of a grid, and points with names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from swavg.analysis.chunks import Array
from swavg.errors import NumericsError
from swavg.evaluation.landscape.grid import Grid
from swavg.evaluation.landscape.plane import Position
from swavg.evaluation.survey import Metric


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
    """Values on a grid, of shape (rows of y, columns of x); ``error`` is None if there is none."""

    grid: Grid
    loss: Array
    error: Array | None
    places: tuple[Place, ...]

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

    def unknown(self, metric: Metric) -> npt.NDArray[np.bool_]:
        """The cells between points of the grid of which a corner is NaN or infinite; of shape
        (rows - 1, columns - 1)."""
        wrong = ~np.isfinite(self.values(metric))
        across = wrong[:, :-1] | wrong[:, 1:]
        return across[:-1] | across[1:]

    @property
    def named(self) -> tuple[Place, ...]:
        return tuple(place for place in self.places if place.kind != "trail")

    @property
    def trail(self) -> tuple[Place, ...]:
        return tuple(place for place in self.places if place.kind == "trail")
