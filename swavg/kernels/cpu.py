"""The NumPy kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from swavg.dtypes import BY_NAME, DType
from swavg.kernels.base import Arithmetic, ReadChunk
from swavg.kernels.floats import (
    TWO_112,
    divide,
    narrow,
    narrow_float16_mean,
    widen,
    widen_float16_scaled,
)

Array = np.ndarray[Any, Any]


class _Constants:
    """What a kernel needs to know of an arithmetic: the ``dtype`` of the sum, and per input its
    dtype, its weight (None: uniform) and the dtype as which NumPy adds it right away (None: it
    must be widened first). ``scaled`` tells whether all is float16 and no weight too large."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        self.dtype = BY_NAME[arithmetic.accumulator].numpy()
        self.terms: list[tuple[DType, Array | None, np.dtype[Any] | None]] = [
            (
                source,
                None if arithmetic.uniform else np.array(weight, self.dtype),
                source.numpy()
                if arithmetic.uniform and source.name in ("float32", "bfloat16")
                else None,
            )
            for source, weight in zip(arithmetic.inputs, arithmetic.weights, strict=True)
        ]
        with np.errstate(all="ignore"):
            self.scaled_weights = [
                np.array(np.float32(weight) * TWO_112) for weight in arithmetic.weights
            ]
        self.scaled = (
            self.dtype == np.float32
            and all(each.name == "float16" for each in arithmetic.inputs)
            and all(0 < abs(weight) < np.inf for weight in self.scaled_weights)
        )


class CpuKernel:
    """Weighted sums with NumPy and ml_dtypes, for chunks of up to ``elements`` elements."""

    def __init__(
        self, elements: int, itemsize: int = 8, accumulator_size: int = 8, rows: int = 1
    ) -> None:
        self._raw = np.empty(elements * itemsize, np.uint8)
        self._term = np.empty(elements * accumulator_size, np.uint8)
        self._sums = [np.empty(elements * accumulator_size, np.uint8) for _ in range(rows)]
        self._product = np.empty(elements * accumulator_size if rows > 1 else 0, np.uint8)
        self._known: tuple[Arithmetic | None, Any] = None, None

    def weighted_sum(
        self, arithmetic: Arithmetic, count: int, read: ReadChunk, out: memoryview
    ) -> bool:
        if arithmetic is not self._known[0]:
            self._known = arithmetic, _Constants(arithmetic)
        constants, n = self._known[1], len(arithmetic.inputs)
        total = self._sums[0][: count * constants.dtype.itemsize].view(constants.dtype)
        target = np.frombuffer(out, np.uint8)
        with np.errstate(all="ignore"):
            if constants.scaled and self._sum_float16(constants, count, read, total):
                if arithmetic.uniform and arithmetic.output.name == "float16":
                    return narrow_float16_mean(total, n, target, self._term)
                if arithmetic.uniform:
                    np.multiply(total, TWO_112, total)
            else:
                self._sum_any(constants, count, read, total)
            if arithmetic.uniform:
                divide(total, n, total)
            return narrow(total, arithmetic.output, target, self._term)

    def weighted_sums(
        self,
        rows: Sequence[Arithmetic],
        positions: Sequence[Sequence[int]],
        inputs: Sequence[DType],
        count: int,
        read: ReadChunk,
        outs: Sequence[memoryview],
    ) -> list[bool]:
        """Several sums over one read: row ``r`` is made of the inputs ``positions[r]``, ascending.

        All rows have one accumulator. The bits of each are those of :meth:`weighted_sum`.
        """
        dtype = BY_NAME[rows[0].accumulator].numpy()
        nbytes = count * dtype.itemsize
        term = self._term[:nbytes].view(dtype)
        product = self._product[:nbytes].view(dtype)
        totals = [buffer[:nbytes].view(dtype) for buffer in self._sums[: len(rows)]]
        weights = [
            dict(zip(where, row.weights, strict=True))
            for row, where in zip(rows, positions, strict=True)
        ]
        with np.errstate(all="ignore"):
            for index, source in enumerate(inputs):
                raw = self._raw[: source.nbytes(count)]
                read(index, raw.data)
                widen(raw, source, term)
                for row, where, weight, total in zip(rows, positions, weights, totals, strict=True):
                    if index not in weight:
                        continue
                    first = index == where[0]
                    if row.uniform:
                        if first:
                            total[...] = term
                        else:
                            np.add(total, term, total)
                        continue
                    np.multiply(term, np.array(weight[index], dtype), total if first else product)
                    if not first:
                        np.add(total, product, total)
            finite = []
            for row, total, out in zip(rows, totals, outs, strict=True):
                if row.uniform:
                    divide(total, len(row.inputs), total)
                finite.append(narrow(total, row.output, np.frombuffer(out, np.uint8), self._term))
            return finite

    def _sum_any(self, constants: _Constants, count: int, read: ReadChunk, total: Array) -> None:
        term = self._term[: total.nbytes].view(total.dtype)
        for index, (source, weight, addable) in enumerate(constants.terms):
            raw = self._raw[: source.nbytes(count)]
            read(index, raw.data)
            if index and addable is not None:
                # NumPy widens and adds in one pass; both conversions are exact.
                np.add(total, raw.view(addable), total)
                continue
            target = term if index else total
            widen(raw, source, target)
            if weight is not None:
                np.multiply(target, weight, target)
            if index:
                np.add(total, term, total)

    def _sum_float16(
        self, constants: _Constants, count: int, read: ReadChunk, total: Array
    ) -> bool:
        """The sum of float16 inputs without multiplications to undo their scale (a uniform sum
        stays 2^-112 times too small); False if an input is not finite.

        The bits are those of :meth:`_sum_any`. Weighted: x 2^-112 times w 2^112 is the same
        product. Uniform: sums of multiples of 2^-136 below 2^-126 are exact in float32 as they
        are in the unscaled sum, and above that the rounding is the same.
        """
        term = self._term[: total.nbytes].view(np.float32)
        raw = self._raw[: 2 * count]
        data = raw.data
        for index, (_, weight, _) in enumerate(constants.terms):
            read(index, data)
            target = term if index else total
            if not widen_float16_scaled(raw, target):
                return False
            if weight is not None:
                np.multiply(target, constants.scaled_weights[index], target)
            if index:
                np.add(total, term, total)
        return True

    def close(self) -> None:
        self._raw = self._term = self._product = np.empty(0, np.uint8)
        self._sums = []
