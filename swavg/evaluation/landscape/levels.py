"""The values at which contours are drawn: close together in the valley, wide apart above it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from swavg.analysis.chunks import Array
from swavg.errors import NumericsError

BANDS = 9

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
        return _levels([(low - width, _decimals(width)), (low + width, _decimals(width))], False)
    above = finite - low
    positive = above[above > 0]
    first = float(np.quantile(positive, _FIRST))
    last = float(np.quantile(positive, _LAST))
    # A hundredfold step per band would leave only cliffs.
    first = max(first, last * 1e-4)
    last = max(last, first * 1.5)
    ratio = (last / first) ** (1 / max(1, bands - 2))
    wanted = [low + first * ratio**index for index in range(bands - 1)]
    decimals = _decimals(min(first, first * (ratio - 1)))
    edges = [(math.floor(low * 10**decimals) / 10**decimals, decimals)]
    for edge in wanted:
        # Wide steps need fewer digits than narrow ones.
        digits = min(decimals, _decimals(max(edge - edges[-1][0], first)))
        if round(edge, digits) > edges[-1][0]:
            edges.append((round(edge, digits), digits))
    if len(edges) < 2:
        edges.append((edges[0][0] + 10**-decimals, decimals))
    return _levels(edges, high > edges[-1][0])


def _levels(edges: Sequence[tuple[float, int]], open_above: bool) -> Levels:
    """Of edges with the decimals that each is shown with."""
    return Levels(
        tuple(round(edge, digits) for edge, digits in edges),
        tuple(f"{edge:.{digits}f}" for edge, digits in edges),
        open_above,
    )


def _decimals(gap: float) -> int:
    """Decimals that show ``gap`` to a fifth of itself or so."""
    exponent = math.floor(math.log10(gap))
    return max(0, min(12, -exponent + (gap < 3 * 10.0**exponent)))
