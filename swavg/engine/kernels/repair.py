"""Blocks whose result is not finite, element by element: what can be saved, and whose fault it is.

The fast kernels only notice that something is not finite. Here, for those elements alone:

- an element with the same value in every input (the -inf of an attention mask, say) keeps it,
  if the weights sum to 1;
- a finite mean whose float32 sum overflowed on the way is taken in float64;
- NaN becomes the one canonical quiet NaN, so that all devices give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from swavg.dtypes import BY_NAME, DType
from swavg.engine.kernels.base import Arithmetic, ReadChunk, Terms
from swavg.engine.kernels.cpu import CpuKernel
from swavg.engine.kernels.floats import Bytes, limits, narrow, widen
from swavg.weights import sums_to_one

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Trouble:
    """The first element of a block that has no finite result."""

    index: int
    """Elements from the block's start."""
    value: float
    """The exact sum."""
    inputs: Sequence[tuple[int, float]]
    """Those in which the element is NaN or Inf, as they are read, with that value; empty: a
    finite sum overflows."""
    kept: bool = False
    """It is the Inf that every input has there, as are all others."""


@np.errstate(all="ignore")
def repair(
    arithmetic: Arithmetic, terms: Terms, count: int, read: ReadChunk, out: memoryview
) -> Trouble | None:
    """Recompute a row of the block into ``out``; what cannot be represented is NaN, Inf or the
    nearest value there, and the first such element is returned (else the first Inf that was kept).
    """
    _recompute(arithmetic, terms, count, read, out)
    rounded = np.empty(count)
    low, high = limits(arithmetic.output)
    widen(np.frombuffer(out, np.uint8), arithmetic.output, rounded)
    first, same, total = _in_float64(arithmetic, terms, count, read)
    bad = ~np.isfinite(rounded) | ~((total > low) & (total < high))
    if not terms.uniform and not sums_to_one(terms.weights):
        same[:] = False
    kept = bad & same & ~np.isnan(first)
    values = np.where(kept, first, total)
    values[np.isnan(values)] = np.nan
    _replace(out, arithmetic.output, bad, values[bad])
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
    for position in terms.positions:
        value = float(_in_double(arithmetic.inputs[position], position, count, read)[index])
        if not np.isfinite(value):
            guilty.append((position, value))
    return Trouble(index, float(total[index]), guilty)


def _recompute(
    arithmetic: Arithmetic, terms: Terms, count: int, read: ReadChunk, out: memoryview
) -> None:
    """The row as a kernel computes it, from its own inputs alone."""
    inputs = tuple(arithmetic.inputs[position] for position in terms.positions)
    alone = replace(terms, positions=tuple(range(len(inputs))))
    input_size = max(dtype.itemsize for dtype in inputs)
    sum_size = BY_NAME[arithmetic.accumulator].itemsize
    CpuKernel(count, input_size, sum_size, rows=1).weighted_sums(
        replace(arithmetic, inputs=inputs, rows=(alone,)),
        count,
        lambda number, buffer: read(terms.positions[number], buffer),
        [out],
    )


def _in_double(dtype: DType, position: int, count: int, read: ReadChunk) -> Doubles:
    raw, values = np.empty(dtype.nbytes(count), np.uint8), np.empty(count)
    read(position, raw.data)
    widen(raw, dtype, values)
    return values


def _in_float64(
    arithmetic: Arithmetic, terms: Terms, count: int, read: ReadChunk
) -> tuple[Doubles, npt.NDArray[np.bool_], Doubles]:
    """The first input, where all inputs have its value, and the weighted sum, in float64."""
    first, same, total = np.empty(count), np.ones(count, bool), np.zeros(count)
    for number, (position, weight) in enumerate(zip(terms.positions, terms.weights, strict=True)):
        values = _in_double(arithmetic.inputs[position], position, count, read)
        if number == 0:
            first = values
        same &= values == first
        total += values if terms.uniform else values * weight
    if terms.uniform:
        total /= len(terms.positions)
    return first, same, total


def _replace(out: memoryview, dtype: DType, where: npt.NDArray[np.bool_], values: Doubles) -> None:
    fresh: Bytes = np.empty(values.size * dtype.itemsize, np.uint8)
    narrow(values, dtype, fresh)
    unit = f"u{dtype.itemsize}"
    np.frombuffer(out, unit)[where] = fresh.view(unit)
