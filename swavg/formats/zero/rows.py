"""Tensors cut over flat ones, which lie in the files of several ranks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from swavg.dtypes import DType
from swavg.formats.tensors import Box, Tensor, TensorSpec


class Flat(NamedTuple):
    """``numel`` elements that lie end to end, from the byte ``offset`` of a source on."""

    dtype: DType
    source: int
    offset: int
    numel: int


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """Flat tensors, one behind the other; ``ends`` count the elements up to the end of each."""

    flats: tuple[Flat, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, flats: Sequence[Flat]) -> Row:
        return cls(tuple(flats), tuple(accumulate(flat.numel for flat in flats)))

    @property
    def numel(self) -> int:
        return self.ends[-1] if self.ends else 0

    def boxes(self, start: int, count: int, at: int) -> Iterator[Box]:
        """Where ``count`` elements from ``start`` on lie: boxes of a tensor from its ``at`` on."""
        number = bisect_right(self.ends, start)
        while count:
            dtype, source, offset, numel = self.flats[number]
            first = start - (self.ends[number] - numel)
            size = min(count, numel - first)
            if size:
                yield Box(source, offset + first * dtype.itemsize, (at,), (size,))
            start, count, at, number = start + size, count - size, at + size, number + 1


@dataclass(frozen=True, eq=False, slots=True)
class Cut:
    """A tensor of which each row in turn has ``each`` elements from ``start`` on, the last ones
    fewer: what follows them is padding."""

    spec: TensorSpec
    rows: tuple[Row, ...]
    start: int
    each: int

    def boxes(self) -> Iterator[Box]:
        """Where it lies, in the order of its elements."""
        numel = self.spec.numel
        for at, row in zip(range(0, numel, self.each or 1), self.rows, strict=False):
            yield from row.boxes(self.start, min(self.each, numel - at), at)

    @property
    def tensor(self) -> Tensor:
        return Tensor(self.spec, tuple(self.boxes()), (self.spec.numel,))
