"""Small floats by table: 8-bit and narrower floats widen and round through look-ups.

Widening: a code is an index into a table of float32. Rounding: a float32 is cut to its upper 16
bits, of which the lowest is set if anything was cut off (rounding to odd); these 8 bits of
precision decide correctly for every type of at most 4 bits of precision, so one table of 65,536
codes rounds to nearest even. Both kernels use the same tables and so give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from swavg.dtypes import DType

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """Codes of a small float: ``widen[code]`` is its value, ``round[key]`` the nearest code.

    Values ``low < x < high`` have a finite nearest code.
    """

    widen: Array
    round: Array
    low: float
    high: float


@lru_cache
def table(dtype: DType) -> Table:
    """The table of an 8-bit or narrower float."""
    small = dtype.numpy()
    codes = np.arange(1 << dtype.bits, dtype=np.uint8)
    widen = codes.view(small).astype(np.float32)
    keys = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
    with np.errstate(all="ignore"):
        nearest = keys.astype(small)
    rounded = nearest.view(np.uint8)
    # The type's own largest and smallest values, half a step beyond which nothing finite is near.
    finite = np.sort(widen[np.isfinite(widen)].astype(np.float64))
    unsigned = finite[0] > 0
    high = _limit(float(finite[-1]), float(finite[-1] - finite[-2]), int(_code(widen, finite[-1])))
    low = 0.0 if unsigned else -high
    return Table(widen, rounded, low, high)


def _code(widen: Array, value: float) -> int:
    return int(np.flatnonzero(widen == np.float32(value))[0])


def _limit(largest: float, step: float, code: int) -> float:
    edge = largest + step / 2
    # The tie goes to the even code: to the largest value itself if its code is even.
    return edge if code % 2 else float(np.nextafter(np.float32(edge), np.float32(np.inf)))
