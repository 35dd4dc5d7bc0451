"""The chunks of a distributed checkpoint: each is a whole zip of torch.save with one tensor.

Those of one shape and dtype are equal but for their data: the first of them is read in full, of
the others only that they begin and end just like it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, tee
from typing import NamedTuple

from swavg.dtypes import DType
from swavg.errors import InputError
from swavg.formats.blocks import Read, read_places
from swavg.formats.dcp.saved import ChunkColumns, Place
from swavg.formats.tensors import Shape
from swavg.formats.torch.archive import read_archive, read_graph
from swavg.formats.torch.objects import Refused, View
from swavg.formats.torch.views import placed
from swavg.formats.zip_directory import END
from swavg.storage.paths import FileReader
from swavg.storage.pool import Pool
from swavg.storage.sources import Source

_HEAD = 1024
"""Bytes of a chunk up to its data, nearly always."""


class Wanted(NamedTuple):
    """A chunk to find: of the tensor ``name``, with elements of ``dtype`` and this shape."""

    place: Place
    name: str
    dtype: DType
    shape: Shape


class Found(NamedTuple):
    """Where the first element of a chunk lies in its file; ``strides`` as in a Box."""

    offset: int
    strides: Shape | None


class _Known(NamedTuple):
    """A chunk that was read in full: its bytes up to the data, its last ones, and where the data
    starts in it."""

    head: bytes
    end: bytes
    found: Found


def find_chunks(
    pool: Pool,
    sources: Sequence[Source],
    chunks: ChunkColumns,
    tensor: Callable[[int], tuple[str, DType]],
) -> Iterator[tuple[int, Found]]:
    """For each chunk its number and where its data lies, in the order of the files. ``tensor`` says
    of which it is, by name and dtype. InputError for a chunk that is not what is wanted, or shares
    its bytes with another."""

    def wanted(number: int) -> Wanted:
        return Wanted(chunks.place(number), *tensor(number), chunks.shapes[number])

    known: dict[tuple[DType, Shape, int], _Known] = {}
    for file, numbers in groupby(chunks.in_files(), chunks.files.__getitem__):
        source = sources[file]
        read = FileReader(pool, source)
        own, ahead = tee(numbers)
        blocks = read_places(read, _ends(source, map(wanted, ahead)))
        for number in own:
            chunk = wanted(number)
            (block, first), (tail, last) = next(blocks), next(blocks)
            end = bytes(tail[last : last + END.size])
            key = chunk.dtype, chunk.shape, chunk.place.length
            seen = known.get(key)
            if seen is None or seen.end != end or not block.startswith(seen.head, first):
                seen = known[key] = _read(read, source.name, chunk, end)
            yield number, Found(chunk.place.offset + seen.found.offset, seen.found.strides)


def _ends(source: Source, chunks: Iterable[Wanted]) -> Iterator[tuple[int, int]]:
    """Of each chunk the places of its beginning and its end."""
    before = 0
    for chunk in chunks:
        _, offset, length, transforms = chunk.place
        if transforms:
            shown = ", ".join(transforms)[:80]
            raise InputError(
                source.name, f"'{chunk.name[:80]}' is stored with {shown}, which is not read"
            )
        if offset < before:
            raise InputError(source.name, f"'{chunk.name[:80]}' shares its bytes with another")
        before = offset + length
        if length < END.size:
            raise InputError(source.name, f"'{chunk.name[:80]}' is in {length} bytes, no zip")
        yield offset, min(_HEAD, length)
        yield before - END.size, END.size


def _read(read: Read, path: str, chunk: Wanted, end: bytes) -> _Known:
    """A chunk, read in full; ``end`` are its last bytes."""
    _, start, length, _ = chunk.place

    def inside(offset: int, size: int) -> bytes | bytearray:
        return read(start + offset, size)

    archive = read_archive(inside, path, length)
    tensor = read_graph(inside, archive).top
    if not isinstance(tensor, View):
        what = tensor.what if isinstance(tensor, Refused) else "no tensor"
        raise InputError(path, f"'{chunk.name[:80]}' is {what}; swavg averages plain tensors only")
    (view,) = placed(path, {chunk.name: tensor}, archive.locate)
    if (view.dtype, view.shape) != (chunk.dtype, chunk.shape):
        raise InputError(
            path,
            f"'{chunk.name[:80]}' is {view.dtype} {view.shape} there, and {chunk.dtype}"
            f" {chunk.shape} going by the metadata",
        )
    head = bytes(inside(0, min(archive.locate(tensor.storage), _HEAD)))
    return _Known(head, end, Found(view.offset, view.strides))
