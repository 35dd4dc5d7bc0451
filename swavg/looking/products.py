"""How far tensors lie apart, streamed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from swavg.dtypes import DType
from swavg.formats.base import Checkpoint, Tensor
from swavg.formats.files import FilePool
from swavg.looking.chunks import (
    Array,
    OnProgress,
    all_finite,
    check,
    in_order,
    ranges,
    read_chunk,
    scaled,
    scratch,
    tame,
    wide,
)
from swavg.looking.figures import Distance


@dataclass(frozen=True, slots=True)
class _Sum:
    """``value * 2**exponent`` (an even exponent): a sum of products beyond float64's range."""

    value: float = 0.0
    exponent: int = 0

    def plus(self, other: _Sum) -> _Sum:
        if self.value == 0 or other.value == 0:
            return other if self.value == 0 else self
        top = max(self.exponent, other.exponent)
        one = math.ldexp(self.value, self.exponent - top)
        return _Sum(one + math.ldexp(other.value, other.exponent - top), top)

    def root(self) -> float:
        return scaled(math.sqrt(self.value), self.exponent // 2)

    def root_over(self, other: _Sum) -> float:
        ratio = math.sqrt(self.value) / math.sqrt(other.value)
        return scaled(ratio, (self.exponent - other.exponent) // 2)


@dataclass(frozen=True, slots=True)
class _Products:
    """Sums over pairs of elements, both finite: a a, b b, a b, (a-b)(a-b); and counts."""

    aa: _Sum = _Sum()
    bb: _Sum = _Sum()
    ab: _Sum = _Sum()
    dd: _Sum = _Sum()
    largest: float = 0.0
    differing: int = 0
    nonfinite: int = 0

    def plus(self, other: _Products) -> _Products:
        return _Products(
            self.aa.plus(other.aa),
            self.bb.plus(other.bb),
            self.ab.plus(other.ab),
            self.dd.plus(other.dd),
            max(self.largest, other.largest),
            self.differing + other.differing,
            self.nonfinite + other.nonfinite,
        )

    def distance(self, name: str, elements: int) -> Distance:
        relative: float | None = 0.0
        if self.dd.value:
            relative = self.dd.root_over(self.aa) if self.aa.value else None
        cosine = None
        if self.aa.value and self.bb.value:
            scale = math.sqrt(self.aa.value) * math.sqrt(self.bb.value)
            shift = self.ab.exponent - (self.aa.exponent + self.bb.exponent) // 2
            cosine = max(-1.0, min(1.0, math.ldexp(self.ab.value / scale, shift)))
            if not self.dd.value:
                cosine = 1.0
        return Distance(
            name,
            elements,
            self.differing,
            self.nonfinite,
            self.dd.root(),
            (self.aa.root(), self.bb.root()),
            relative,
            self.largest,
            cosine,
        )


def _products(raw_a: Array, raw_b: Array, a_dtype: DType, b_dtype: DType) -> _Products:
    """The sums over one chunk of both."""
    with np.errstate(all="ignore"):
        a = wide(raw_a, a_dtype)
        if a_dtype is b_dtype and np.array_equal(raw_a, raw_b) and all_finite(a):
            a, exponent = tame(a, a_dtype)
            same = _Sum(_summed(a, a), 2 * exponent)
            return _Products(same, same, same)
        b = wide(raw_b, b_dtype, "other")
        complex_parts = "complex" in (a_dtype.kind, b_dtype.kind)
        if complex_parts:
            a, b = _as_complex(a, a_dtype), _as_complex(b, b_dtype)
        nonfinite, by = 0, 0
        apart = _exactly_apart(raw_a, raw_b, a_dtype, b_dtype)
        if apart is None:
            apart = np.subtract(a, b, out=scratch("apart", a.size))
            if not all_finite(apart):
                # Either NaN and Inf, or numbers too large for their difference.
                finite = np.isfinite(a) & np.isfinite(b)
                if complex_parts:
                    finite = np.repeat(finite.reshape(-1, 2).all(axis=1), 2)
                unequal = (a != b) & ~(np.isnan(a) & np.isnan(b)) & ~finite
                nonfinite = _count(unequal, complex_parts)
                a, b = a[finite], b[finite]
                apart = a - b
                if apart.size and not all_finite(apart):
                    apart, by = np.ldexp(a, -1) - np.ldexp(b, -1), 1
        differing = nonfinite + _count(apart, complex_parts)
        (a_tame, a_by), (b_tame, b_by) = tame(a, a_dtype), tame(b, b_dtype)
        largest = 0.0
        if apart.size:
            if complex_parts:
                peak = float(np.hypot(apart[0::2], apart[1::2]).max())
            else:
                peak = max(float(apart.max()), -float(apart.min()))
            largest = scaled(peak, by)
        apart, more = tame(apart, a_dtype if a_dtype.part.bits >= b_dtype.part.bits else b_dtype)
        return _Products(
            _Sum(_summed(a_tame, a_tame), 2 * a_by),
            _Sum(_summed(b_tame, b_tame), 2 * b_by),
            _Sum(_summed(a_tame, b_tame), a_by + b_by),
            _Sum(_summed(apart, apart), 2 * (by + more)),
            largest,
            differing,
            nonfinite,
        )


def _summed(a: Array, b: Array) -> float:
    """The sum of a b, added pairwise; without BLAS, whose order depends on the machine."""
    return float(np.multiply(a, b, out=scratch("product", a.size)).sum())


def _count(flags: Array, complex_parts: bool) -> int:
    """How many elements of ``flags`` are not zero, of complex ones in either part."""
    # NumPy counts bools fast, and nothing else.
    flags = flags != 0
    return int(np.count_nonzero(flags.reshape(-1, 2).any(axis=1) if complex_parts else flags))


def _as_complex(values: Array, dtype: DType) -> Array:
    if dtype.kind == "complex":
        return values
    parts = np.zeros(2 * values.size)
    parts[0::2] = values
    return parts


def _exactly_apart(raw_a: Array, raw_b: Array, a_dtype: DType, b_dtype: DType) -> Array | None:
    """|a - b| of 64-bit integers, which float64 could not tell apart; None for other dtypes."""
    if a_dtype is not b_dtype or a_dtype.kind != "integer" or a_dtype.bits != 64:
        return None
    a, b = raw_a.view(a_dtype.numpy()), raw_b.view(a_dtype.numpy())
    # The wrapped difference, read without a sign, is exact.
    apart: Array = np.where(a > b, a - b, b - a).view(np.uint64).astype(np.float64)
    return apart


def distances_of(
    a: Checkpoint,
    b: Checkpoint,
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    on_progress: OnProgress | None,
) -> tuple[tuple[Distance, ...], Distance | None]:
    """Per tensor, the farthest first; and over all floats."""
    # Pairs that are tied in both are read once.
    firsts: dict[Any, str] = {}
    first_of = {
        name: firsts.setdefault((x.extent, x.spec.dtype.name, y.extent, x.spec.shape), name)
        for name, (x, y) in pairs.items()
    }

    def pieces() -> Iterator[tuple[str, int, int]]:
        for name in firsts.values():
            x, y = pairs[name]
            kinds = (x.spec.dtype.kind, y.spec.dtype.kind)
            packed = x if x.spec.dtype.bits % 8 else y
            for start, stop in ranges(packed, 2 if "complex" in kinds else 1):
                yield name, start, stop

    def work(piece: tuple[str, int, int]) -> _Products:
        name, start, stop = piece
        x, y = pairs[name]
        raw_a = read_chunk(pool, a, x, start, stop)
        raw_b = read_chunk(pool, b, y, start, stop, "raw of b")
        return _products(raw_a, raw_b, x.spec.dtype, y.spec.dtype)

    found = dict.fromkeys(firsts.values(), _Products())
    read = 0
    whole = sum(x.spec.nbytes + y.spec.nbytes for x, y in map(pairs.__getitem__, found))
    with FilePool() as pool:
        for (name, start, stop), products in in_order(pieces(), work):
            found[name] = found[name].plus(products)
            read += sum(each.spec.dtype.nbytes(stop - start) for each in pairs[name])
            if on_progress is not None:
                on_progress(read, whole)
    check(a, b)
    distances = [
        found[first_of[name]].distance(name, x.spec.numel) for name, (x, _) in pairs.items()
    ]
    summed, elements = _Products(), 0
    for name, products in found.items():
        if pairs[name][0].spec.dtype.floating:
            summed = summed.plus(products)
            elements += pairs[name][0].spec.numel
    return (
        tuple(sorted(distances, key=_rank)),
        summed.distance("", elements) if elements else None,
    )


def _rank(distance: Distance) -> tuple[bool, bool, float, float]:
    relative = math.inf if distance.relative is None else distance.relative
    return (not distance.nonfinite, not distance.differing, -relative, -distance.largest)
