"""The arrays of an item, read with tensorstore: each is a source of its own."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import floordiv
from weakref import WeakValueDictionary

import numpy as np

from swavg.dtypes import BY_NAME, DType
from swavg.errors import InputError, MissingDependencyError
from swavg.formats.orbax.rows import Grid, Range, Rows
from swavg.formats.orbax.tree import Item, Leaf
from swavg.formats.strides import regions
from swavg.formats.tensors import Shape
from swavg.storage.paths import absolute, find_file
from swavg.storage.sources import Source

try:
    import tensorstore
except ImportError:
    raise MissingDependencyError(
        "Orbax checkpoints are read with tensorstore, which is not installed.",
        hint="pip install 'swavg[orbax]'",
    ) from None

_METADATA_LIMIT = 1 << 20
"""Bytes of what describes an array."""
_AT_ONCE = 256
"""Arrays that are opened side by side."""
_ENTRY = 16
"""Bytes of a chunk in the index of a shard of several."""
_NODES = 1 << 22
"""Bytes of a cache for what leads to the chunks: a database is a tree."""

IN_MEMORY = 1 << 18
"""Bytes of a row of chunks up to which decoded ones are kept in memory, not on disk."""


@dataclass(frozen=True, eq=False)
class Shared:
    """What arrays of an item share as long as one of them is open: a cache of tensorstore, and
    decoded rows of chunks."""

    context: tensorstore.Context
    rows: Rows


_shared: WeakValueDictionary[tuple[str, int], Shared] = WeakValueDictionary()
"""That of this process, by folder and size."""


@dataclass(frozen=True, slots=True)
class Array:
    """A source: the row-major elements of an array.

    ``described`` is the file that changes when the array is written anew; ``held`` counts the bytes
    of chunks that the arrays of its item together keep in memory, so that each is decoded once if
    they are read in order. ``whole``: all its chunks are stored: one that is missing was lost.
    """

    item: Item
    stored: str
    size: int
    described: Source
    held: int
    whole: bool

    # tensorstore has threads.
    forks = False

    def __hash__(self) -> int:
        return hash((self.item.folder, self.stored))

    @property
    def name(self) -> str:
        return os.path.join(self.item.folder, self.stored)

    @property
    def identity(self) -> tuple[object, ...]:
        return (*self.described.identity, self.stored)

    @property
    def version(self) -> int | str:
        return self.described.version

    def open(self) -> OpenArray:
        self.described.check()
        shared = _share(self.item, self.held)
        with _errors(self.name):
            opened = _open(self.item, self.stored, shared.context, whole=self.whole)
            return OpenArray(self.name, opened.result(), shared)

    def check(self) -> None:
        self.described.check()


@dataclass(frozen=True, slots=True)
class OpenArray:
    """An array open for reading; rows of chunks that were decoded are kept in ``shared`` for what
    is read next."""

    name: str
    store: tensorstore.TensorStore
    shared: Shared

    def read_into(self, offset: int, out: memoryview) -> None:
        grid = self._grid()
        if grid is None:
            self._decode_into(offset, out)
            return
        done = 0
        while done < len(out):
            start, stop = row = grid.row_at(offset + done)
            part = out[done : done + stop - offset - done]
            if len(part) == stop - start:
                self._decode_into(start, part)
            else:
                self.shared.rows.read_into(self.name, row, offset + done, part, self._decoded)
            done += len(part)

    def _grid(self) -> Grid | None:
        """The rows of chunks, if they are not kept in memory."""
        chunk = _chunk(self.store.chunk_layout.read_chunk)
        grid = Grid.of(tuple(self.store.shape), chunk, self.store.dtype.numpy_dtype.itemsize)
        return grid if grid.row > IN_MEMORY else None

    def _decoded(self, row: Range) -> Iterator[memoryview]:
        """The bytes of a row of chunks, without a copy of them."""
        itemsize = self.store.dtype.numpy_dtype.itemsize
        return self._read(row[0] // itemsize, row[1] // itemsize)

    def _read(self, start: int, stop: int) -> Iterator[memoryview]:
        """The row-major elements ``[start, stop)``."""
        for region in regions(self.store.shape, start, stop):
            place = tuple(slice(first, first + count) for first, count in region)
            with _errors(self.name):
                part = self.store[place].read(order="C").result()
            yield part.reshape(-1).view(np.uint8).data

    def _decode_into(self, offset: int, out: memoryview) -> None:
        itemsize: int = self.store.dtype.numpy_dtype.itemsize
        start, stop = offset // itemsize, -(-(offset + len(out)) // itemsize)
        skipped, done = offset - start * itemsize, 0
        exact = (stop - start) * itemsize == len(out)
        target = out if exact else memoryview(bytearray((stop - start) * itemsize))
        for part in self._read(start, stop):
            target[done : done + len(part)] = part
            done += len(part)
        if not exact:
            out[:] = target[skipped : skipped + len(out)]

    def close(self) -> None:
        """Nothing is open for longer than a read."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What an array says of itself; ``row`` counts the bytes of a row of its chunks."""

    dtype: DType
    shape: Shape
    row: int
    whole: bool
    """All chunks are stored."""


def source_of(leaf: Leaf, facts: Facts, held: int) -> Array:
    """The elements of an array, as bytes."""
    size = facts.dtype.nbytes(math.prod(facts.shape))
    return Array(leaf.item, leaf.stored, size, described(leaf), held, facts.whole)


def facts_of(leaves: Sequence[Leaf]) -> Iterator[Facts]:
    """Open the arrays: what each is, in order. InputError for one that is broken, or incomplete."""
    # Not what another reader keeps of the same folder: it may have changed.
    cache = _cache(_NODES)
    for first in range(0, len(leaves), _AT_ONCE):
        some = leaves[first : first + _AT_ONCE]
        places = [os.path.join(leaf.item.folder, leaf.stored) for leaf in some]
        pending = []
        for leaf, place in zip(some, places, strict=True):
            described(leaf)
            with _errors(place):
                pending.append(_open(leaf.item, leaf.stored, cache, whole=True))
        for leaf, place, opened in zip(some, places, pending, strict=True):
            with _errors(place):
                store = opened.result()
            dtype, shape, row = _form(place, store)
            with _errors(place):
                stored = store.storage_statistics(query_fully_stored=True).result()
            whole = stored.fully_stored is True
            # Without a value for them, older Orbax stored all chunks too.
            if not whole and (leaf.item.dense or store.fill_value is None):
                raise InputError(place, "lacks chunks of its shape: was it copied in full?")
            yield Facts(dtype, shape, row, whole)


def described(leaf: Leaf) -> Source:
    """The file that is written with an array. InputError if there is none."""
    item = leaf.item
    if item.ocdbt:
        return find_file(os.path.join(item.folder, "manifest.ocdbt"))
    name = "zarr.json" if item.zarr3 else ".zarray"
    file = find_file(os.path.join(item.folder, leaf.stored, name))
    if file.size > _METADATA_LIMIT:
        raise InputError(file.name, f"has {file.size:,} bytes, more than one array could need")
    return file


def _form(place: str, store: tensorstore.TensorStore) -> tuple[DType, Shape, int]:
    """Dtype, shape, and the bytes of a row of chunks."""
    dtype, shape = BY_NAME.get(store.dtype.name), tuple(store.shape)
    if dtype is None or dtype.bits % 8:
        raise InputError(place, f"has the dtype {store.dtype.name}, which swavg does not read")
    layout = store.chunk_layout
    chunk, shard = _chunk(layout.read_chunk), _chunk(layout.write_chunk)
    padded = [-(-extent // size) * size for extent, size in zip(shape, chunk, strict=True)]
    axis = next((axis for axis, size in enumerate(chunk) if size > 1), len(chunk))
    row = math.prod([*chunk[: axis + 1], *padded[axis + 1 :]]) * dtype.itemsize
    row += _ENTRY * math.prod(map(floordiv, shard, chunk)) if shard != chunk else 0
    if row > (most := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
        # tensorstore would end the process.
        problem = f"is compressed in chunks of {row:,} bytes a row; this machine has {most:,}"
        raise InputError(place, problem)
    return dtype, shape, row


def _chunk(grid: tensorstore.ChunkLayout.Grid) -> Shape:
    """The shape of a chunk, or of a shard."""
    return tuple(size or 1 for size in grid.shape or ())


def _share(item: Item, held: int) -> Shared:
    """What arrays of an item share; its cache has room for ``held`` bytes of chunks."""
    key = item.folder, held
    if (shared := _shared.get(key)) is None:
        shared = _shared.setdefault(key, Shared(_cache(held), Rows()))
    return shared


def _cache(held: int) -> tensorstore.Context:
    return tensorstore.Context({"cache_pool": {"total_bytes_limit": held + _NODES}})


def _open(
    item: Item, stored: str, cache: tensorstore.Context, *, whole: bool
) -> tensorstore.Future[tensorstore.TensorStore]:
    """An array that is being opened."""
    folder = absolute(item.folder)
    store: dict[str, object] = {"driver": "file", "path": f"{folder}/{stored}/"}
    if item.ocdbt:
        base = {"driver": "file", "path": f"{folder}/"}
        store = {"driver": "ocdbt", "base": base, "path": f"{stored}/"}
    spec = {
        "driver": "zarr3" if item.zarr3 else "zarr",
        "kvstore": store,
        "fill_missing_data_reads": not whole,
        "recheck_cached_data": "open",
        "recheck_cached_metadata": "open",
    }
    return tensorstore.open(spec, open=True, read=True, context=cache)


@contextmanager
def _errors(place: str) -> Iterator[None]:
    """InputError, with what tensorstore says."""
    try:
        yield
    except (ValueError, OverflowError, LookupError, RuntimeError, OSError, MemoryError) as error:
        text = str(error).partition(" [tensorstore_spec")[0]
        raise InputError(place, f"cannot be read: {text[:300]}") from None
