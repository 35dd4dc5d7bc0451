"""How far tensors lie apart, streamed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from swavg.analysis.chunks import (
    Array,
    Bytes,
    OnProgress,
    all_finite,
    check,
    in_order,
    ranges,
    read_chunk,
    scratch,
    summed,
    wide,
)
from swavg.analysis.figures import Distance
from swavg.dtypes import DType
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.tensors import Tensor
from swavg.storage.pool import Pool


@dataclass(frozen=True, slots=True)
class _Products:
    """Sums over pairs of elements, both finite: a a, b b, a b, (a-b)(a-b); and counts."""

    aa: float = 0.0
    bb: float = 0.0
    ab: float = 0.0
    dd: float = 0.0
    largest: float = 0.0
    differing: int = 0
    nonfinite: int = 0

    def plus(self, other: _Products) -> _Products:
        return _Products(
            self.aa + other.aa,
            self.bb + other.bb,
            self.ab + other.ab,
            self.dd + other.dd,
            max(self.largest, other.largest),
            self.differing + other.differing,
            self.nonfinite + other.nonfinite,
        )

    def distance(self, name: str, elements: int) -> Distance:
        a, b, apart = math.sqrt(self.aa), math.sqrt(self.bb), math.sqrt(self.dd)
        relative: float | None = 0.0
        if self.differing > self.nonfinite:
            # Squares may be zero though their numbers are not, and infinite.
            relative = apart / a if apart and 0 < a < math.inf else None
        cosine = None
        if 0 < a * b < math.inf:
            cosine = max(-1.0, min(1.0, self.ab / (a * b))) if self.dd else 1.0
        return Distance(
            name,
            elements,
            self.differing,
            self.nonfinite,
            apart,
            (a, b),
            relative,
            self.largest,
            cosine,
        )


def _products(raw_a: Bytes, raw_b: Bytes, a_dtype: DType, b_dtype: DType) -> _Products:
    """The sums over one chunk of both."""
    with np.errstate(all="ignore"):
        a = wide(raw_a, a_dtype)
        if a_dtype is b_dtype and np.array_equal(raw_a, raw_b) and all_finite(a):
            same = summed(a, a)
            return _Products(same, same, same)
        b = wide(raw_b, b_dtype, "other")
        complex_parts = "complex" in (a_dtype.kind, b_dtype.kind)
        if complex_parts:
            a, b = _as_complex(a, a_dtype), _as_complex(b, b_dtype)
        nonfinite = 0
        apart = _exactly_apart(raw_a, raw_b, a_dtype, b_dtype)
        if apart is None:
            apart = np.subtract(a, b, out=scratch("apart", a.size))
            if not all_finite(apart):
                finite = np.isfinite(a) & np.isfinite(b)
                if complex_parts:
                    finite = np.repeat(finite.reshape(-1, 2).all(axis=1), 2)
                unequal = (a != b) & ~(np.isnan(a) & np.isnan(b)) & ~finite
                nonfinite = _count(unequal, complex_parts)
                a, b = a[finite], b[finite]
                apart = a - b
        differing = nonfinite + _count(apart, complex_parts)
        largest = 0.0
        if apart.size and complex_parts:
            largest = float(np.hypot(apart[0::2], apart[1::2]).max())
        elif apart.size:
            largest = max(float(apart.max()), -float(apart.min()))
        return _Products(
            summed(a, a), summed(b, b), summed(a, b), summed(apart, apart),
            largest, differing, nonfinite,
        )  # fmt: skip


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


def _exactly_apart(raw_a: Bytes, raw_b: Bytes, a_dtype: DType, b_dtype: DType) -> Array | None:
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
    """Per tensor, the farthest first; and over all floats. Raises InputError."""
    # Pairs that are tied in both are read once.
    firsts: dict[object, str] = {}
    first_of = {
        name: firsts.setdefault((x.boxes, x.spec.dtype.name, y.boxes, x.spec.shape), name)
        for name, (x, y) in pairs.items()
    }

    def pieces() -> Iterator[tuple[str, int, int]]:
        for name in firsts.values():
            for start, stop in ranges(*pairs[name]):
                yield name, start, stop

    def work(piece: tuple[str, int, int]) -> _Products:
        name, start, stop = piece
        x, y = pairs[name]
        raw_a = read_chunk(pool, a, x, start, stop)
        raw_b = read_chunk(pool, b, y, start, stop, "raw of b")
        return _products(raw_a, raw_b, x.spec.dtype, y.spec.dtype)

    sums = dict.fromkeys(firsts.values(), _Products())
    read = 0
    whole = sum(x.spec.nbytes + y.spec.nbytes for x, y in map(pairs.__getitem__, sums))
    with Pool() as pool:
        for (name, start, stop), products in in_order(pieces(), work):
            sums[name] = sums[name].plus(products)
            read += sum(each.spec.dtype.nbytes(stop - start) for each in pairs[name])
            if on_progress is not None:
                on_progress(read, whole)
    check(a, b)
    distances = [
        sums[first_of[name]].distance(name, x.spec.numel) for name, (x, _) in pairs.items()
    ]
    total, elements = _Products(), 0
    for name, products in sums.items():
        if pairs[name][0].spec.dtype.floating:
            total = total.plus(products)
            elements += pairs[name][0].spec.numel
    return (tuple(sorted(distances, key=_rank)), total.distance("", elements) if elements else None)


def _rank(distance: Distance) -> tuple[bool, bool, float, float]:
    relative = math.inf if distance.relative_distance is None else distance.relative_distance
    return (not distance.nonfinite, not distance.differing, -relative, -distance.largest)
