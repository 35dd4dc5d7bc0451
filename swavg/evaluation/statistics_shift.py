"""How far batch-norm statistics moved: figures over all channels of all layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from swavg.analysis.chunks import Array
from swavg.formats.checkpoint import Checkpoint

Quantiles = tuple[float, float, float]
_QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True, slots=True)
class StatisticsShift:
    """The 5 %, 50 % and 95 % quantiles over channels: ``variance`` of new over old variances,
    ``mean`` of how many old standard deviations the mean moved. None where no channel had an old
    variance above 0."""

    channels: int
    variance: Quantiles | None
    mean: Quantiles | None


def statistics_shift(before: Checkpoint, after: Checkpoint) -> StatisticsShift:
    """The difference that the statistics ``after`` make to those of the same names ``before``."""
    ratios: list[Array] = []
    shifts: list[Array] = []
    for name in after.tensors:
        if not name.endswith("running_var"):
            continue
        mean = f"{name.removesuffix('var')}mean"
        old, new = _wide(before, name), _wide(after, name)
        usable = (old > 0) & np.isfinite(old)
        ratios.append(new[usable] / old[usable])
        if mean in after.tensors:
            shift = np.abs(_wide(after, mean) - _wide(before, mean))[usable]
            shifts.append(shift / np.sqrt(old[usable]))
    return StatisticsShift(sum(map(len, ratios)), _quantiles(ratios), _quantiles(shifts))


def _wide(checkpoint: Checkpoint, name: str) -> Array:
    return checkpoint.read(name).astype(np.float64)


def _quantiles(parts: list[Array]) -> Quantiles | None:
    values = np.concatenate(parts) if parts else np.empty(0)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, median, high = np.quantile(values, _QUANTILES)
    return float(low), float(median), float(high)
