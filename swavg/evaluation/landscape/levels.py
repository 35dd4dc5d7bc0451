"""The values at which contours are drawn: close together in the valley, wide apart above it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from swavg.analysis.chunks import Array
from swavg.errors import NumericsError

BANDS = 9

# By less than this share of its level, a value does not vary that anyone should care.
_FLAT = 0.03

# Shares of the points that lie within the first band, and below the last one.
_FIRST, _LAST = 0.04, 0.90


@dataclass(frozen=True, slots=True)
class Levels:
    """Ascending ``edges`` of the bands of colour, and the edges as ``texts``; values above the
    last share one more band if ``open_above``."""

    edges: tuple[float, ...]
    texts: tuple[str, ...]
    open_above: bool

    @property
    def bands(self) -> int:
        return len(self.edges) - 1 + self.open_above


def make_levels(values: Sequence[float] | Array, bands: int = BANDS) -> Levels:
    """Edges lowest + a, lowest + a r, lowest + a r^2, ... below the bulk of ``values``, rounded to
    what is needed to tell them apart (as the contours of Izmailov et al. 2018, figure 1).

    Values that are not finite do not count. NumericsError if none is finite.
    """
    found = np.asarray(values, np.float64).ravel()
    finite = np.sort(found[np.isfinite(found)])
    if not finite.size:
        raise NumericsError(
            "no point of the survey has a finite loss.",
            hint="Does the model with these checkpoints give numbers on this data at all? After a"
            " change in your code, use anew=True.",
        )
    low, high = float(finite[0]), float(finite[-1])
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        # Flat: one band around the value.
        width = abs(low) * 0.01
        width = width if width > 1e-10 else 0.01
        return _levels([low - width, low + width], _decimals(width), high)
    above = finite - low
    positive = above[above > 0]
    first = float(np.quantile(positive, _FIRST))
    last = float(np.quantile(positive, _LAST))
    # A hundredfold step per band would leave only cliffs.
    first = max(first, last * 1e-4)
    last = max(last, first * 1.5)
    ratio = (last / first) ** (1 / max(1, bands - 2))
    decimals = _decimals(min(first, first * (ratio - 1)))
    lowest = math.floor(low * 10**decimals) / 10**decimals
    wanted = (round(low + first * ratio**index, decimals) for index in range(bands - 1))
    edges = sorted({lowest, *(edge for edge in wanted if edge > lowest)})
    return _levels(edges if len(edges) > 1 else [lowest, lowest + 10**-decimals], decimals, high)


def range_text(values: Array, unit: str = "") -> str:
    """From where to where ``values`` go, and whether that is hardly anywhere."""
    finite = values[np.isfinite(values)]
    low, high = float(finite.min(initial=np.inf)), float(finite.max(initial=-np.inf))
    level = max(abs(low), abs(high))
    if high == low:
        return f"flat: {low:.4g}{unit} everywhere"
    if high - low < _FLAT * level:
        share = 100 * (high - low) / level
        return f"flat: varies by {share:.1g}% around {(low + high) / 2:.4g}{unit}"
    return f"{low:.4g} to {high:.4g}{unit}"


def _levels(edges: Sequence[float], decimals: int, high: float) -> Levels:
    """Of ``edges``, all shown with as many decimals, and the highest value."""
    shown = f".{max(0, decimals)}f"
    if not 1e-4 <= max(map(abs, edges)) < 1e6:
        digits = (f".{each}e" for each in range(1, 17))
        shown = next(each for each in digits if len({f"{e:{each}}" for e in edges}) == len(edges))
    return Levels(tuple(edges), tuple(f"{edge:{shown}}" for edge in edges), high > edges[-1])


def _decimals(gap: float) -> int:
    """Decimals that show ``gap`` to a fifth of itself or so; negative for large ones."""
    exponent = math.floor(math.log10(gap))
    return min(12, -exponent + (gap < 3 * 10.0**exponent))
