"""Floats to and from the accumulator: exact one way, rounded once the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from swavg.dtypes import DType
from swavg.kernels.tables import table
from swavg.packing import pack_codes, unpack_codes

Array = np.ndarray[Any, Any]

# Constants as arrays without dimensions: ufuncs take them in half the time of Python numbers, which
# counts, since other threads wait for the interpreter meanwhile.
_SIGN_AND_BODY = np.array(0x8FFFE000, np.uint32).view(np.int32)
_EXPONENT = np.array(0x7F800000, np.int32)
_MAGNITUDE = np.array(0x7FFFFFFF, np.int32)
_SMALLEST_NORMAL_F16 = np.array(113 << 23, np.int32)
_STEP_F16 = np.array(13 << 23, np.int32)
_BIAS_F16 = np.array(((113 + 13) << 10) & 0xFFFF, np.uint16)
_SIGN_F16 = np.array(0x8000, np.uint16)
_EXPONENT_TOP = np.array(0x7F80, np.uint16)
_HALF_STEP_F16 = np.array(0xFFF, np.int32)
_1 = np.array(1, np.int32)
_13, _16 = np.array(13, np.int32), np.array(16, np.int32)
TWO_112 = np.array(2.0**112, np.float32)


def widen(raw: Array, dtype: DType, out: Array) -> None:
    """Convert the ``raw`` bytes (uint8) of ``dtype`` to the float32 or float64 array ``out``."""
    if dtype.bits <= 8:
        codes = unpack_codes(raw, dtype)
        if _is32(out):
            np.take(table(dtype).widen, codes, out=out, mode="clip")
        else:
            np.copyto(out, table(dtype).widen[codes])
    elif dtype.name == "float16" and _is32(out):
        _widen_float16(raw, out)
    else:
        np.copyto(out, raw.view(dtype.numpy()), casting="unsafe")


def _is32(array: Array) -> bool:
    return bool(array.dtype.itemsize == 4)


def _widen_float16(raw: Array, out: Array) -> None:
    """float16 to float32 through integers, several times as fast as NumPy's cast, as exact."""
    if widen_float16_scaled(raw, out):
        np.multiply(out, TWO_112, out)
    else:
        np.copyto(out, raw.view(np.float16))


def widen_float16_scaled(raw: Array, out: Array) -> bool:
    """Fill ``out`` with the values times 2^-112, exactly; False if one is NaN or Inf.

    A float16's exponent and fraction, moved to their places in a float32, are that value.
    """
    half = raw.view(np.int16)
    if not half.size:
        return True
    if not _finite(raw, "float16"):
        return False
    bits = out.view(np.int32)
    bits[...] = half
    np.left_shift(bits, _13, bits)
    np.bitwise_and(bits, _SIGN_AND_BODY, bits)
    return True


def round_to_odd(wide: Array) -> Array:
    """float64 to float32, inexact values to the neighbour with an odd last bit.

    A second rounding to at most 22 bits of precision then equals a single one (Boldo and
    Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to
    odd", 2008, theorem 1).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        narrow_ = wide.astype(np.float32)
    back = narrow_.astype(np.float64)
    bits = narrow_.view(np.int32)
    away = (back != wide) & (bits & 1 == 0) & (wide == wide)
    bits += np.where(away, np.where(np.abs(back) < np.abs(wide), 1, -1), 0).astype(np.int32)
    return narrow_


def limits(dtype: DType) -> tuple[float, float]:
    """``(low, high)``: values strictly between them round to finite numbers of ``dtype``."""
    if dtype.bits <= 8:
        found = table(dtype)
        return found.low, found.high
    high = {
        "float16": 65520.0,
        "bfloat16": float.fromhex("0x1.ffp127"),
        # Half a step above the largest.
        "float32": float.fromhex("0x1.ffffffp127"),
        "float64": float("inf"),
    }[dtype.name]
    return -high, high


def narrow(accumulated: Array, dtype: DType, out: Array, scratch: Array | None = None) -> bool:
    """Round ``accumulated`` (float32 or float64) once to ``dtype``, into the bytes ``out``.

    ``accumulated`` is overwritten. False if a value is NaN, Inf or beyond the dtype's range.
    """
    if dtype.name in ("float32", "float64"):
        np.copyto(out.view(dtype.numpy()), accumulated, casting="unsafe")
        return _finite(out, dtype.name)
    if not _is32(accumulated):
        accumulated = round_to_odd(accumulated)
    if dtype.name == "bfloat16":
        np.copyto(out.view(dtype.numpy()), accumulated, casting="unsafe")
        return _finite(out, dtype.name)
    finite = _between(accumulated, *limits(dtype))
    if dtype.name == "float16":
        if finite:
            _narrow_float16(accumulated, out, scratch)
        else:
            with np.errstate(over="ignore"):
                np.copyto(out.view(np.float16), accumulated, casting="unsafe")
    else:
        bits = accumulated.view(np.uint32)
        keys = (bits >> 16 | (bits & 0xFFFF != 0)).astype(np.uint16)
        out[...] = pack_codes(table(dtype).round[keys], dtype)
    return finite


# Infinity's bits: what is below, as a signed and as an unsigned number, is positive and finite, and
# negative and finite.
_INFINITIES: dict[str, tuple[Any, int, Any, int]] = {
    "float16": (np.int16, 0x7C00, np.uint16, 0xFC00),
    "bfloat16": (np.int16, 0x7F80, np.uint16, 0xFF80),
    "float32": (np.int32, 0x7F800000, np.uint32, 0xFF800000),
    "float64": (np.int64, 0x7FF << 52, np.uint64, 0xFFF << 52),
}


def _finite(raw: Array, name: str) -> bool:
    """True if the bytes ``raw`` of a dtype hold neither NaN nor Inf."""
    signed, positive, unsigned, negative = _INFINITIES[name]
    return not raw.size or bool(
        np.maximum.reduce(raw.view(signed)) < positive
        and np.maximum.reduce(raw.view(unsigned)) < negative
    )


def divide(total: Array, n: int, out: Array) -> None:
    """Divide by ``n``; by a power of two through its reciprocal, which is exact, and faster."""
    if n & (n - 1):
        np.divide(total, np.array(n, total.dtype), out)
    else:
        np.multiply(total, np.array(1 / n, total.dtype), out)


def _between(values: Array, low: float, high: float) -> bool:
    # NaN fails both comparisons.
    return not values.size or bool(
        np.maximum.reduce(values) < high and np.minimum.reduce(values) > low
    )


def _narrow_float16(values: Array, out: Array, scratch: Array | None) -> None:
    """float32 of magnitude below 65520 to float16, nearest even, through one float addition.

    Adding 2^(e+13), where e is the value's exponent (at least float16's smallest), leaves the
    wanted 11 bits at the bottom of the sum, rounded by the addition itself.
    """
    # Signed integers: NumPy's maximum is vectorised for these. All values here are positive.
    bits = values.view(np.int32)
    step = np.empty_like(bits) if scratch is None else scratch.view(np.int32)[: bits.size]
    half = out.view(np.uint16)
    np.right_shift(bits, _16, step)
    np.copyto(half, step, casting="unsafe")
    np.bitwise_and(half, _SIGN_F16, half)
    np.bitwise_and(bits, _MAGNITUDE, bits)
    np.bitwise_and(bits, _EXPONENT, step)
    np.maximum(step, _SMALLEST_NORMAL_F16, out=step)
    np.add(step, _STEP_F16, step)
    np.add(values, step.view(np.float32), values)
    np.subtract(bits, step, bits)
    np.right_shift(step, _13, step)
    np.add(bits, step, bits)
    # What is left has 16 bits: the constant and the sign are added at half the cost.
    magnitude = step.view(np.uint16)[: bits.size]
    np.copyto(magnitude, bits, casting="unsafe")
    np.subtract(magnitude, _BIAS_F16, magnitude)
    np.bitwise_or(half, magnitude, half)


def narrow_float16_mean(total: Array, n: int, out: Array, scratch: Array) -> bool:
    """The mean of ``n`` float16 values, from their float32 sum times 2^-112; False on overflow.

    So scaled, a float32 has float16's exponent and fraction at bit 13: rounding is an integer
    addition. Where the mean is subnormal in float16, the scaled quotient is subnormal in float32
    and loses bits: if ``n`` is no power of two, those elements are divided unscaled. The bits are
    those of :func:`narrow`.
    """
    mean = scratch[: total.nbytes].view(np.float32)
    divide(total, n, mean)
    bits, half = mean.view(np.int32), out.view(np.uint16)
    rounded = total.view(np.int32)
    subnormal = fixed = np.empty(0, np.intp)
    if n & (n - 1) or n > 1 << 13:
        half[...] = bits.view(np.uint16)[1::2]
        subnormal = np.flatnonzero((half & _EXPONENT_TOP) == 0)
        fixed = (total[subnormal] * TWO_112 / np.float32(n)).astype(np.float16).view(np.uint16)
    else:
        np.right_shift(bits, _16, rounded)
        np.copyto(half, rounded, casting="unsafe")
    np.right_shift(bits, _13, rounded)
    np.bitwise_and(rounded, _1, rounded)
    np.add(rounded, bits, rounded)
    np.add(rounded, _HALF_STEP_F16, rounded)
    np.right_shift(rounded, _13, rounded)
    # The mean of finite numbers is below 2^17: 16 bits hold it without its sign.
    magnitude = scratch.view(np.uint16)[: half.size]
    np.copyto(magnitude, rounded, casting="unsafe")
    if half.size and np.maximum.reduce(magnitude) >= 0x7C00:
        return False
    np.bitwise_and(half, _SIGN_F16, half)
    np.bitwise_or(half, magnitude, half)
    half[subnormal] = fixed
    return True
