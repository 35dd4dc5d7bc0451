"""The data files of a distributed checkpoint that is written: rows of tensors in chunks of a
bounded size, so that a rank reads little more than its own; and bytes of the template."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from swavg.dtypes import DType
from swavg.errors import OutputError, RequestError
from swavg.formats.dcp.chunk_zip import ChunkZip, digits
from swavg.formats.dcp.saved import ChunkColumns, Chunks, Place, Saved, SavedTensor
from swavg.formats.layout import FileLayout, Kept, Specs
from swavg.formats.tensors import Shape
from swavg.storage.crc import RegionChecksum
from swavg.storage.paths import find_file
from swavg.storage.pool import Pool

MOST = 5_000_000_000
"""Bytes of a data file: what would make it larger begins a new one."""
CHUNK = 16 << 20
"""Bytes of a chunk, unless one row has more: all of it is read for any part of it."""


@dataclass(frozen=True, eq=False, repr=False)
class ChunksLayout(FileLayout):
    """A data file: chunks of tensors, each in a zip; then bytes of the template. ``zip_of`` has the
    number of each chunk's zip, ``full_names`` the names of all tensors."""

    zips: tuple[ChunkZip, ...] = ()
    zip_of: array[int] = field(default_factory=lambda: array("I"))
    full_names: Sequence[str] = ()

    checksum = "crc32"

    def chunks(self) -> Iterator[tuple[ChunkZip, int, str]]:
        """Each chunk's zip, the offset of its data, and a name that no other chunk has."""
        for at, (number, offset) in enumerate(zip(self.tensors, self.offsets, strict=True)):
            start, _ = self.parts.get(at, (0, 0))
            name = self.full_names[number]
            yield self.zips[self.zip_of[at]], offset, f"{name}[{start}:]" if start else name

    def fixed(self) -> Iterator[tuple[int, bytes]]:
        for chunk, offset, _ in self.chunks():
            yield offset - len(chunk.head), chunk.head

    def deferred(self, crc: RegionChecksum) -> Iterator[tuple[int, Callable[[], bytes]]]:
        for chunk, offset, name in self.chunks():

            def tail(chunk: ChunkZip = chunk, at: int = offset, name: str = name) -> bytes:
                return chunk.tail(crc(at) if chunk.data.size else 0, name)

            yield offset + chunk.data.size, tail

    def verify(self, path: str) -> None:
        """Compare the beginning of each chunk's zip, and the digits of its name."""
        file = find_file(path)
        if file.size != self.size:
            raise OutputError(path, "the finished file has not the size that was planned")
        with Pool() as pool:
            for chunk, offset, name in self.chunks():
                start = offset - len(chunk.head)
                own = digits(name)
                if (
                    pool.read(file, start, len(chunk.head)) != chunk.head
                    or pool.read(file, start + chunk.digits_at, len(own)) != own
                ):
                    raise OutputError(path, f"the finished file lacks '{name[:80]}'")


@dataclass
class _File:
    """A data file as it grows."""

    size: int = 0
    tensors: array[int] = field(default_factory=lambda: array("I"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    zips: array[int] = field(default_factory=lambda: array("I"))
    parts: dict[int, tuple[int, int]] = field(default_factory=dict)
    kept: list[Kept] = field(default_factory=list)


class DataFiles:
    """The data files, filled one after the other."""

    def __init__(self, specs: Specs, full_names: list[str]) -> None:
        self.specs = specs
        self.full_names = full_names
        self.files = [_File()]
        for dtype, _ in specs.forms:
            if dtype.bits % 8:
                raise RequestError(f"A distributed checkpoint has no dtype for {dtype}.")
        self.zips: list[ChunkZip] = []
        self._zip_of: dict[tuple[DType, Shape], int] = {}
        self.chunks = ChunkColumns()
        self.tensors: dict[str, SavedTensor] = {}

    def room(self, nbytes: int) -> tuple[int, _File]:
        """The file that takes so many bytes, and its number."""
        if self.files[-1].size and self.files[-1].size + nbytes > MOST:
            self.files.append(_File())
        return len(self.files) - 1, self.files[-1]

    def add_tensor(self, number: int) -> None:
        _, dtype, shape = self.specs.at(number)
        first = len(self.chunks)
        for start, extent in _cut(dtype, shape):
            self.add_chunk(number, start, extent)
        own = Chunks(self.chunks, first, len(self.chunks))
        self.tensors[self.full_names[number]] = SavedTensor(dtype.name, shape, own)

    def add_chunk(self, number: int, start: Shape, shape: Shape) -> None:
        _, dtype, whole = self.specs.at(number)
        place = self._zip_of.setdefault((dtype, shape), len(self.zips))
        if place == len(self.zips):
            self.zips.append(ChunkZip(dtype, shape))
        chunk = self.zips[place]
        index, file = self.room(chunk.size)
        if shape != whole:
            first = start[0] * math.prod(whole[1:])
            file.parts[len(file.tensors)] = first, first + math.prod(shape)
        file.tensors.append(number)
        file.zips.append(place)
        file.offsets.append(file.size + len(chunk.head))
        self.chunks.add(start, shape, Place(index, file.size, chunk.size))
        file.size += chunk.size

    def add_kept(self, saved: Saved, model: Collection[str]) -> Saved:
        """Copy all that is none of the ``model``'s; what it is, and where it lies now."""
        chunks = ChunkColumns()
        tensors: dict[str, SavedTensor] = {}
        for name, tensor in saved.tensors.items():
            if name not in model:
                first = len(chunks)
                for chunk in tensor.chunks:
                    chunks.add(*chunk)
                own = Chunks(chunks, first, len(chunks))
                tensors[name] = SavedTensor(tensor.dtype, tensor.shape, own)
        first = len(chunks)
        for place in saved.objects.values():
            chunks.add((), (), place)
        before = None
        for number in chunks.in_files():
            place = chunks.place(number)
            # Empty chunks may share a place.
            if place != before:
                index, at = self.keep(place)
            chunks.files[number], chunks.offsets[number] = index, at
            before = place
        objects = {name: chunks.place(number) for number, name in enumerate(saved.objects, first)}
        return Saved((), tensors, objects, {})

    def keep(self, place: Place) -> tuple[int, int]:
        """Copy what lies at a place; the file and the offset where it lies now."""
        index, file = self.room(place.length)
        last = file.kept[-1] if file.kept else None
        if (
            last is not None
            and last.source == place.file
            and last.start + last.nbytes == place.offset
        ):
            file.kept[-1] = replace(last, nbytes=last.nbytes + place.length)
        else:
            file.kept.append(Kept(file.size, place.offset, place.length, place.file))
        file.size += place.length
        return index, file.size - place.length

    def saved(self, paths: dict[str, tuple[str | int, ...]], kept: Saved | None) -> Saved:
        """What the folder will hold."""
        names = tuple(_data_name(number) for number in range(len(self.files)))
        tensors = self.tensors if kept is None else {**self.tensors, **kept.tensors}
        objects = {} if kept is None else kept.objects
        present = {name: keys for name, keys in paths.items() if name in tensors or name in objects}
        return Saved(names, tensors, objects, present)

    def layouts(self, inside: Callable[[str], str]) -> Iterator[ChunksLayout]:
        for number, file in enumerate(self.files):
            yield ChunksLayout(
                inside(_data_name(number)), file.size, self.specs, file.tensors, file.offsets,
                tuple(file.kept), parts=file.parts, zips=tuple(self.zips), zip_of=file.zips,
                full_names=self.full_names,
            )  # fmt: skip


def _cut(dtype: DType, shape: Shape) -> Iterator[tuple[Shape, Shape]]:
    """Where the chunks of a tensor begin, and their shapes: as many rows as a chunk has room for.
    It does not depend on the template, so that all outputs of a sweep have the same."""
    if not shape or dtype.nbytes(math.prod(shape)) <= CHUNK:
        yield (0,) * len(shape), shape
        return
    rows, row = shape[0], shape[1:]
    step = max(1, CHUNK // dtype.nbytes(math.prod(row)))
    zeros, full = (0,) * len(row), (step, *row)
    for first in range(0, rows, step):
        yield (first, *zeros), full if first + step <= rows else (rows - first, *row)


def _data_name(number: int) -> str:
    return f"__0_{number}.distcp"
