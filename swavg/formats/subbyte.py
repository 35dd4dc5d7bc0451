"""Elements narrower than a byte: packed without gaps in files, one code per byte in memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from swavg.dtypes import DType

Bytes = npt.NDArray[np.uint8]


def unpack_codes(packed: Bytes, dtype: DType) -> Bytes:
    """One code per byte from packed elements of 4 or 6 bits, the first in the lowest bits."""
    if dtype.bits == 4:
        return np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)
    low, middle, high = packed.reshape(-1, 3).T
    codes = [low, low >> 6 | middle << 2, middle >> 4 | high << 4, high >> 2]
    return np.bitwise_and(np.stack(codes, axis=1).reshape(-1), 63, dtype=np.uint8)
