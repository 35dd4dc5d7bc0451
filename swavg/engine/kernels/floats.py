"""Floats to and from the accumulator: exact one way, rounded once the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from swavg.dtypes import DType
from swavg.engine.kernels.tables import table

try:
    # Many times as fast as NumPy's and ml_dtypes' casts, with the same bits (but in NaNs).
    from numkong import astype

    fast_cast: Callable[..., object] | None = astype
except ImportError:
    fast_cast = None

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]

_PART = 1 << 13

TEMPORARY = 64 * _PART
"""Bytes that :func:`widen` and :func:`narrow` take for themselves at most, of aligned arrays."""


def _parts(count: int) -> Iterator[slice]:
    """Slices of few elements, for what takes many bytes per element on the way."""
    for start in range(0, count, _PART):
        yield slice(start, min(start + _PART, count))


def widen(raw: Bytes, dtype: DType, out: Floats) -> None:
    """Convert the ``raw`` bytes of ``dtype`` to the float32 or float64 array ``out``."""
    if dtype.bits == 8:
        values = table(dtype).widen
        for part in _parts(out.size):
            out[part] = values[raw[part]]
        return
    source = raw.view(dtype.numpy())
    if dtype.name == "float16" and out.dtype == np.float32:
        _cast(source, out, "float32")
    else:
        np.copyto(out, source, casting="unsafe")


def narrow(values: Floats, dtype: DType, out: Bytes) -> bool:
    """Round ``values`` (float32 or float64) once to ``dtype``, into the bytes ``out``.

    False if a value is NaN, Inf or beyond the dtype's range.
    """
    if dtype.bits > 16:
        target = out.view(dtype.numpy())
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(target, values, casting="unsafe")
        return _within(target, np.inf)
    if dtype.bits == 16 and values.dtype == np.float32:
        return _round_to_16_bits(values, dtype, out)
    rounded = _round_to_16_bits if dtype.bits == 16 else _round_to_8_bits
    good = True
    for part in _parts(values.size):
        single = values[part] if values.dtype == np.float32 else round_to_odd(values[part])
        place = slice(part.start * dtype.itemsize, part.stop * dtype.itemsize)
        good &= rounded(single, dtype, out[place])
    return good


def _round_to_16_bits(values: Floats, dtype: DType, out: Bytes) -> bool:
    target = out.view(dtype.numpy())
    good = _within(values, limits(dtype)[1])
    if good:
        _cast(values, target, dtype.name)
    else:
        # NumKong makes zeros and Infs of some NaNs.
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(target, values, casting="unsafe")
    return good


def _round_to_8_bits(values: Floats, dtype: DType, out: Bytes) -> bool:
    bits = values.view(np.uint32)
    keys = (bits >> 16 | (bits & 0xFFFF != 0)).astype(np.uint16)
    out[...] = table(dtype).round[keys]
    low, high = limits(dtype)
    # NaN fails both comparisons.
    return not values.size or bool(values.min() > low and values.max() < high)


def _cast(source: npt.NDArray[np.generic], out: npt.NDArray[np.generic], name: str) -> None:
    """From a 16-bit float to float32, or back: to the dtype ``name``, which is that of ``out``."""
    if fast_cast is None:
        np.copyto(out, source, casting="unsafe")
    elif source.flags.aligned and out.flags.aligned:
        fast_cast(source, name, out=out)
    else:
        for part in _parts(out.size):
            aligned = np.empty(out[part].shape, out.dtype)
            fast_cast(source[part].copy(), name, out=aligned)
            out[part] = aligned


def _within(values: Floats, high: float) -> bool:
    """True if all values lie strictly between ``-high`` and ``high``; NaN does not.

    As signed numbers, the bits of what is positive and less are below those of ``high``; as
    unsigned numbers, those of what is negative below those of ``-high``.
    """
    signed, plus, unsigned, minus = _bits(values.itemsize, high)
    return not values.size or bool(
        np.maximum.reduce(values.view(signed)) < plus
        and np.maximum.reduce(values.view(unsigned)) < minus
    )


@lru_cache
def _bits(
    size: int, high: float
) -> tuple[np.dtype[np.signedinteger], int, np.dtype[np.unsignedinteger], int]:
    """The integers of the size of a float, with the bits of ``high`` and ``-high``."""
    signed, unsigned, floating = (np.dtype(f"{kind}{size}") for kind in "iuf")
    plus, minus = np.array(high, floating).view(signed), np.array(-high, floating).view(unsigned)
    return signed, int(plus), unsigned, int(minus)


def round_to_odd(wide: Floats) -> npt.NDArray[np.float32]:
    """float64 to float32, inexact values to the neighbour with an odd last bit.

    A second rounding to at most 22 bits of precision then equals a single one (Boldo and
    Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to
    odd", 2008, theorem 1).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        odd = wide.astype(np.float32)
    back = odd.astype(np.float64)
    bits = odd.view(np.int32)
    away = (back != wide) & (bits & 1 == 0) & (wide == wide)
    bits += np.where(away, np.where(np.abs(back) < np.abs(wide), 1, -1), 0).astype(np.int32)
    return odd


# Half a step above the largest number.
_HIGH = {
    "float16": 65520.0,
    "bfloat16": float.fromhex("0x1.ffp127"),
    "float32": float.fromhex("0x1.ffffffp127"),
    "float64": float("inf"),
}


def limits(dtype: DType) -> tuple[float, float]:
    """``(low, high)``: values strictly between them round to finite numbers of ``dtype``."""
    if dtype.bits == 8:
        return table(dtype).low, table(dtype).high
    return -_HIGH[dtype.name], _HIGH[dtype.name]


def divide(total: Floats, n: int) -> None:
    """Divide by ``n``; by a power of two through its reciprocal, which is exact, and faster."""
    if n & (n - 1):
        np.divide(total, np.array(n, total.dtype), out=total)
    else:
        np.multiply(total, np.array(1 / n, total.dtype), out=total)
