"""The NumPy kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from swavg.dtypes import BY_NAME
from swavg.engine.kernels.base import Arithmetic, ReadChunk, uses
from swavg.engine.kernels.floats import TEMPORARY, Bytes, Floats, divide, narrow, widen

_LINE = 64


def _sizes(elements: int, input_size: int, sum_size: int, rows: int) -> list[int]:
    """Bytes of the buffers: what is read, a term, its product (several rows), the sums."""
    sums = rows + (1 if rows == 1 else 2)
    sizes = [elements * input_size] + [elements * sum_size] * sums
    return [-(-size // _LINE) * _LINE for size in sizes]


def kernel_bytes(elements: int, input_size: int, sum_size: int, rows: int) -> int:
    """Bytes that a :class:`CpuKernel` of these arguments takes."""
    return sum(_sizes(elements, input_size, sum_size, rows)) + _LINE + TEMPORARY


Uses = list[tuple[int, npt.NDArray[np.generic] | None, bool]]
"""As :func:`~swavg.engine.kernels.base.uses`: row, weight, first.

Weights are arrays without dimensions: ufuncs take them in half the time of Python numbers.
"""


def _uses(arithmetic: Arithmetic) -> list[Uses]:
    dtype = BY_NAME[arithmetic.accumulator].numpy()
    return [
        [
            (row, None if weight is None else np.array(weight, dtype), first)
            for row, weight, first in rows
        ]
        for rows in uses(arithmetic)
    ]


class CpuKernel:
    """Weighted sums with NumPy, ml_dtypes and NumKong, for blocks of up to ``elements`` elements.

    The inputs' elements have up to ``input_size`` bytes, those of the sums ``sum_size``.
    """

    def __init__(self, elements: int, input_size: int, sum_size: int, rows: int) -> None:
        sizes = _sizes(elements, input_size, sum_size, rows)
        memory = np.empty(sum(sizes) + _LINE, np.uint8)
        # Aligned to cache lines, sums are a tenth faster.
        start = -memory.ctypes.data % _LINE
        self._buffers: list[Bytes] = np.split(
            memory[start : start + sum(sizes)], np.cumsum(sizes[:-1])
        )
        self._arithmetic: Arithmetic | None = None
        self._uses: list[Uses] = []

    def weighted_sums(
        self, arithmetic: Arithmetic, count: int, read: ReadChunk, outs: Sequence[memoryview]
    ) -> list[bool]:
        if arithmetic is not self._arithmetic:
            self._arithmetic, self._uses = arithmetic, _uses(arithmetic)
        dtype = BY_NAME[arithmetic.accumulator].numpy()
        raw, *buffers = self._buffers
        arrays: list[Floats] = [buffer[: count * dtype.itemsize].view(dtype) for buffer in buffers]
        rows = len(arithmetic.rows)
        totals, spare = arrays[:rows], arrays[rows:]
        with np.errstate(all="ignore"):
            for index, (source, used) in enumerate(zip(arithmetic.inputs, self._uses, strict=True)):
                chunk = raw[: source.nbytes(count)]
                read(index, chunk.data)
                # What starts the only sum that takes it is widened in its place.
                alone = len(used) == 1 and used[0][2]
                term = totals[used[0][0]] if alone else spare[0]
                widen(chunk, source, term)
                _add(term, used, totals, spare[-1])
            finite = []
            for terms, total, out in zip(arithmetic.rows, totals, outs, strict=True):
                if terms.uniform:
                    divide(total, len(terms.positions))
                finite.append(narrow(total, arithmetic.output, np.frombuffer(out, np.uint8)))
        return finite

    def close(self) -> None:
        self._buffers = []


def _add(term: Floats, used: Uses, totals: Sequence[Floats], spare: Floats) -> None:
    """Add a term to the sums of the rows that take it. The last one may overwrite it."""
    for number, (row, weight, first) in enumerate(used, 1):
        total, product = totals[row], term
        if weight is not None:
            if first:
                product = total
            elif number < len(used):
                product = spare
            np.multiply(term, weight, out=product)
        if not first:
            np.add(total, product, out=total)
        elif product is not total:
            np.copyto(total, product)
