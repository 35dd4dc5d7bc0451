"""Small tensors of a model that are made together: one read, one sum and one copy for many.

What a tensor costs besides its elements is the same for all sizes, and in a small network it is
nearly everything.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from swavg.formats import base
from swavg.training.matching import Match
from swavg.training.wrapped import is_sharded

_SMALL = 1 << 15
_GAP = 1024

ReadFile = Callable[[int, int, memoryview], None]
"""Fill the buffer from ``offset`` of the file with an index on."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A stretch of a file that is read at once. ``parts`` are tensors in it: where each begins in
    the stretch, where in the bundle, and how many bytes it has."""

    file: int
    offset: int
    nbytes: int
    parts: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """Tensors of the same dtypes on one device, end to end: of each its ``matches``, and where its
    elements begin. ``runs`` are the reads, for each checkpoint."""

    matches: tuple[Match, ...]
    starts: tuple[int, ...]
    count: int
    runs: tuple[tuple[Run, ...], ...]

    def at(self, index: int) -> tuple[Match, int]:
        """The tensor that holds element ``index``, and which of its elements that is."""
        place = bisect_right(self.starts, index) - 1
        return self.matches[place], index - self.starts[place]

    def read(self, index: int, read: ReadFile, data: memoryview) -> None:
        """Fill ``data`` with the bytes of checkpoint ``index``."""
        for run in self.runs[index]:
            if len(run.parts) == 1:
                (_, place, size) = run.parts[0]
                read(run.file, run.offset, data[place : place + size])
                continue
            stretch = memoryview(bytearray(run.nbytes))
            read(run.file, run.offset, stretch)
            for first, place, size in run.parts:
                data[place : place + size] = stretch[first : first + size]


def bundled(
    matches: Sequence[Match], tensors: Mapping[str, Tensor], most: int
) -> tuple[list[Bundle], list[Match]]:
    """Bundles of up to ``most`` elements, and what is made by itself: large tensors, sharded ones,
    and those whose elements do not lie in a row of whole bytes in a file."""
    groups: dict[tuple[object, ...], list[Match]] = {}
    alone: list[Match] = []
    for each in matches:
        tensor = tensors[each.name]
        if tensor.numel() > min(_SMALL, most) or not _plain(each, tensor):
            alone.append(each)
            continue
        dtypes = tuple(source.spec.dtype for source in each.sources)
        groups.setdefault((dtypes, tensor.dtype, tensor.device), []).append(each)
    found: list[Bundle] = []
    for group in groups.values():
        group.sort(key=lambda each: (each.sources[-1].extent.file, each.sources[-1].extent.offset))
        part: list[Match] = []
        count = 0
        for each in group:
            size = each.sources[0].spec.numel
            if part and count + size > most:
                found.append(_bundle(part))
                part, count = [], 0
            part.append(each)
            count += size
        found.append(_bundle(part))
    return found, alone


def _plain(each: Match, tensor: Tensor) -> bool:
    return not is_sharded(tensor) and all(
        source.extent.strides is None
        and source.spec.dtype.bits % 8 == 0
        and source.spec.dtype.kind != "complex"
        for source in each.sources
    )


def _bundle(matches: Sequence[Match]) -> Bundle:
    sizes = [each.sources[0].spec.numel for each in matches]
    *starts, count = accumulate(sizes, initial=0)
    runs = tuple(
        _runs([each.sources[index] for each in matches], starts)
        for index in range(len(matches[0].sources))
    )
    return Bundle(tuple(matches), tuple(starts), count, runs)


def _runs(sources: Sequence[base.Tensor], starts: Sequence[int]) -> tuple[Run, ...]:
    """The reads of one checkpoint: as few as there are stretches without large gaps."""
    found: list[Run] = []
    for source, start in zip(sources, starts, strict=True):
        file, offset, size = source.extent.file, source.extent.offset, source.spec.nbytes
        place = source.spec.dtype.nbytes(start)
        gap = offset - (found[-1].offset + found[-1].nbytes) if found else -1
        if found and found[-1].file == file and 0 <= gap <= _GAP:
            last = found[-1]
            *before, (first, begin, so_far) = last.parts
            if gap == 0:
                parts = (*before, (first, begin, so_far + size))
            else:
                parts = (*last.parts, (last.nbytes + gap, place, size))
            found[-1] = Run(file, last.offset, last.nbytes + gap + size, parts)
            continue
        found.append(Run(file, offset, size, ((0, place, size),)))
    return tuple(found)
