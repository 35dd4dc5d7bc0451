"""Chunks whose result is not finite, element by element: what can be saved, and whose fault it is.

The fast kernels only notice that something is not finite. Here, for those elements alone:

- an element with the same value in every input (the -inf of an attention mask, say) keeps it,
  if the weights sum to 1;
- a finite mean whose float32 sum overflowed on the way is taken in float64;
- NaN becomes the one canonical quiet NaN, so that all devices give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from swavg.kernels.base import Arithmetic, ReadChunk
from swavg.kernels.cpu import CpuKernel
from swavg.kernels.floats import limits, narrow, widen
from swavg.packing import pack_codes, unpack_codes
from swavg.weights import sums_to_one

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Trouble:
    """The first element of a chunk that has no finite result.

    ``index`` counts elements from the chunk's start; ``value`` is the exact sum; ``inputs`` are
    those in which the element is NaN or Inf, with that value (empty: a finite sum overflows).
    ``kept`` if it is the Inf that every input has there, as all others are.
    """

    index: int
    value: float
    inputs: Sequence[tuple[int, float]]
    kept: bool = False


def repair(arithmetic: Arithmetic, count: int, read: ReadChunk, out: memoryview) -> Trouble | None:
    """Recompute the chunk into ``out``; what cannot be represented is NaN, Inf or the nearest
    value there, and the first such element is returned (else the first Inf that was kept)."""
    CpuKernel(count).weighted_sum(arithmetic, count, read, out)
    bytes_out = np.frombuffer(out, np.uint8)
    with np.errstate(all="ignore"):
        first, same, total = _in_float64(arithmetic, count, read)
        rounded = np.empty(count)
        widen(bytes_out, arithmetic.output, rounded)
        low, high = limits(arithmetic.output)
        bad = ~np.isfinite(rounded) | ~((total > low) & (total < high))
        if not sums_to_one(arithmetic.weights) and not arithmetic.uniform:
            same[:] = False
        kept = bad & same & ~np.isnan(first)
        values = np.where(kept, first, total)
        values[np.isnan(values)] = np.nan
        _replace(bytes_out, arithmetic, bad, values[bad])
        inside = (values > low) & (values < high)
    infinite = kept & np.isinf(first)
    wrong = bad & ~inside & ~infinite
    if not wrong.any():
        if not infinite.any():
            return None
        index = int(np.argmax(infinite))
        return Trouble(index, float(first[index]), (), kept=True)
    index = int(np.argmax(wrong))
    guilty = []
    for position, dtype in enumerate(arithmetic.inputs):
        raw = np.empty(dtype.nbytes(count), np.uint8)
        read(position, raw.data)
        values = np.empty(count)
        widen(raw, dtype, values)
        if not np.isfinite(values[index]):
            guilty.append((position, float(values[index])))
    return Trouble(index, float(total[index]), guilty)


def _in_float64(arithmetic: Arithmetic, count: int, read: ReadChunk) -> tuple[Array, Array, Array]:
    """The first input, where all inputs have its value, and the weighted sum, in float64."""
    first, same = np.empty(count), np.ones(count, bool)
    total, values = np.zeros(count), np.empty(count)
    for position, (dtype, weight) in enumerate(
        zip(arithmetic.inputs, arithmetic.weights, strict=True)
    ):
        raw = np.empty(dtype.nbytes(count), np.uint8)
        read(position, raw.data)
        widen(raw, dtype, values)
        if position == 0:
            first[:] = values
        same &= values == first
        total += values if arithmetic.uniform else values * weight
    if arithmetic.uniform:
        total /= len(arithmetic.inputs)
    return first, same, total


def _replace(out: Array, arithmetic: Arithmetic, where: Array, values: Array) -> None:
    dtype = arithmetic.output
    if dtype.bits < 8:
        codes = unpack_codes(out, dtype)
        # Packing wants whole groups of elements.
        padded = np.zeros(-(-values.size // 8) * 8)
        padded[: values.size] = values
        fresh = np.empty(dtype.nbytes(padded.size), np.uint8)
        narrow(padded, dtype, fresh)
        codes[where] = unpack_codes(fresh, dtype)[: values.size]
        out[...] = pack_codes(codes, dtype)
        return
    fresh = np.empty(values.size * dtype.itemsize, np.uint8)
    narrow(values, dtype, fresh)
    unit = np.dtype(f"u{dtype.itemsize}")
    out.view(unit)[where] = fresh.view(unit)
