"""A surface drawn finer than its grid."""

from __future__ import annotations

import numpy as np

from swavg.analysis.chunks import Array
from swavg.evaluation.landscape.levels import BANDS, Levels, make_levels
from swavg.evaluation.landscape.surface import Surface
from swavg.evaluation.survey import Metric, scale

# Points drawn per grid point along each axis.
_FINER = 6


def panel_levels(surface: Surface, metric: Metric, bands: int = BANDS) -> Levels:
    """The levels that a panel of ``metric`` has; percent for errors."""
    return make_levels(surface.values(metric) * scale(metric), bands)


def smoothed(surface: Surface, metric: Metric, levels: Levels) -> tuple[Array, Array, Array]:
    """Finer xs, ys and values: cubic curves through the values at the grid points.

    They are drawn through log(value - lowest + first band), which is round in a valley and even on
    its slopes; cubics through the values themselves would swing beside a cliff. What is not
    finite takes the values next to it: the cells around it are not to be shown.
    """
    values = surface.values(metric) * scale(metric)
    low, first, last = levels.edges[0], levels.edges[1], levels.edges[-1]
    # Beyond this nothing is told apart; a cliff drawn through 1e30 would bend what is before it.
    top = last + 3 * (last - low)
    near = np.clip(_filled(values, top), low, top)
    curves = np.log(near - low + (first - low))
    xs, across = _finer(np.asarray(surface.grid.xs))
    ys, along = _finer(np.asarray(surface.grid.ys))
    found = np.exp(along @ curves @ across.T) + low - (first - low)
    return xs, ys, np.clip(found, low, top)


def _filled(values: Array, otherwise: float) -> Array:
    """``values`` with what is not finite replaced by the mean of its neighbours that are, from the
    border of such a region inwards."""
    found = np.where(np.isfinite(values), values, np.nan)
    while (gaps := np.isnan(found)).any() and not gaps.all():
        padded = np.pad(found, 1, constant_values=np.nan)
        rows, columns = found.shape
        around = np.stack([
            padded[1 + y : 1 + y + rows, 1 + x : 1 + x + columns]
            for y in (-1, 0, 1) for x in (-1, 0, 1)
        ])  # fmt: skip
        known = ~np.isnan(around)
        count = known.sum(axis=0)
        mean = np.where(known, around, 0).sum(axis=0) / np.maximum(count, 1)
        found = np.where(gaps & (count > 0), mean, found)
    return np.nan_to_num(found, nan=otherwise)


def _finer(coordinates: Array) -> tuple[Array, Array]:
    """Evenly spaced coordinates between the given ones, and the matrix that takes values there
    (Catmull-Rom; beyond the ends the curve goes on as its last three points do)."""
    count = len(coordinates)
    # Padded by a point at each end, on the parabola (or line) through the last ones.
    padded = np.zeros((count + 2, count))
    padded[1:-1] = np.eye(count)
    if count > 2:
        padded[0, :3] = padded[-1, :-4:-1] = 3, -3, 1
    else:
        padded[0, :2] = padded[-1, ::-1] = 2, -1
    steps = np.arange((count - 1) * _FINER + 1)
    cell = np.minimum(steps // _FINER, count - 2)
    t = ((steps - cell * _FINER) / _FINER)[:, None]
    before, start, end, after = (padded[cell + shift] for shift in range(4))
    matrix = 0.5 * (
        2 * start
        + (end - before) * t
        + (2 * before - 5 * start + 4 * end - after) * t**2
        + (3 * start - before - 3 * end + after) * t**3
    )
    return coordinates[0] + (coordinates[-1] - coordinates[0]) * steps / steps[-1], matrix
