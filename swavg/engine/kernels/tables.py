"""8-bit floats widen and round through look-ups.

Widening: a code is an index into a table of float32. Rounding: a float32 is cut to its upper 16
bits, of which the lowest is set if anything was cut off (rounding to odd); these 8 bits of
precision decide correctly for every type of at most 4 bits of precision, so one table of 65,536
codes rounds to nearest even. Both kernels use the same tables and so give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from swavg.dtypes import DType


@dataclass(frozen=True, slots=True)
class Table:
    """Codes of an 8-bit float."""

    widen: npt.NDArray[np.float32]
    """``widen[code]`` is the value."""
    round: npt.NDArray[np.uint8]
    """``round[key]`` is the nearest code."""
    low: float
    high: float
    """Values ``low < x < high`` have a finite nearest code."""


@lru_cache
def table(dtype: DType) -> Table:
    """The table of an 8-bit float."""
    small = dtype.numpy()
    widen = np.arange(256, dtype=np.uint8).view(small).astype(np.float32)
    keys = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
    with np.errstate(all="ignore"):
        rounded = keys.astype(small).view(np.uint8)
    finite = np.sort(widen[np.isfinite(widen)].astype(np.float64))
    largest, step = float(finite[-1]), float(finite[-1] - finite[-2])
    # Half a step beyond the largest value nothing finite is near; the tie itself goes to the even
    # code: to the largest value if its code is even.
    high = largest + step / 2
    if int(np.flatnonzero(widen == largest)[0]) % 2 == 0:
        high = float(np.nextafter(np.float32(high), np.float32(np.inf)))
    return Table(widen, rounded, low=0.0 if finite[0] > 0 else -high, high=high)
