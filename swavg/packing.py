"""Elements narrower than a byte: packed without gaps in files, one code per byte in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from swavg.dtypes import DType

Array = np.ndarray[Any, Any]


def unpack_codes(packed: Array, dtype: DType) -> Array:
    """One code per byte from packed sub-byte elements, the first in the lowest bits."""
    if dtype.bits >= 8:
        return packed
    if dtype.bits == 4:
        codes = np.empty(packed.size * 2, np.uint8)
        np.bitwise_and(packed, 15, out=codes[0::2])
        np.right_shift(packed, 4, out=codes[1::2])
        return codes
    triple = packed.reshape(-1, 3).astype(np.uint32)
    word = triple[:, 0] | triple[:, 1] << 8 | triple[:, 2] << 16
    shifts = np.arange(0, 24, 6, dtype=np.uint32)
    return ((word[:, None] >> shifts) & 63).astype(np.uint8).reshape(-1)


def pack_codes(codes: Array, dtype: DType) -> Array:
    """The inverse of :func:`unpack_codes`."""
    if dtype.bits >= 8:
        return codes
    if dtype.bits == 4:
        pairs: Array = codes[0::2] | codes[1::2] << 4
        return pairs
    shifts = np.arange(0, 24, 6, dtype=np.uint32)
    word = (codes.reshape(-1, 4).astype(np.uint32) << shifts).sum(axis=1, dtype=np.uint32)
    return np.stack([word & 255, word >> 8 & 255, word >> 16], axis=1).astype(np.uint8).reshape(-1)
