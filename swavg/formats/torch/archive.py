"""The records of a torch zip: where each lies, checked before any of it is believed.

torch reads members by their offsets and never looks at the rest of the zip, so everything that
could make the two disagree is refused: compression, encryption, overlaps, holes, repeated names.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from swavg.errors import InputError
from swavg.formats.checkpoint import Record
from swavg.formats.torch.arrays import PickledStorage
from swavg.formats.torch.blocks import Read, read_places
from swavg.formats.torch.objects import Storage
from swavg.formats.torch.unpickler import MAX_BYTES, Graph, unpickle
from swavg.formats.torch.zip_directory import (
    DESCRIBED,
    KNOWN_FLAGS,
    LOCAL,
    MAX32,
    Entry,
    big_endian,
    no_data,
    read_directory,
    torchscript,
)

# Of LOCAL: signature, flags, method, packed and full size, lengths of name and extra field.
_FIELDS = struct.Struct("<4s2x2H8x2I2H")


@dataclass(frozen=True, eq=False)
class Archive:
    """The records of one torch zip, in the order of the file.

    ``names`` are those in the folder ``root``; ``offsets``, ``sizes`` (bytes) and ``crcs`` belong
    to them one to one. ``alignment`` is that of the records.
    """

    path: str
    root: str
    names: tuple[str, ...]
    offsets: array[int]
    sizes: array[int]
    crcs: array[int]
    alignment: int = 64

    @cached_property
    def index(self) -> Mapping[str, int]:
        """The place of each name."""
        return {name: place for place, name in enumerate(self.names)}

    def record(self, name: str) -> Record | None:
        """The record of that name (without the folder's)."""
        place = self.index.get(name)
        return None if place is None else self[place]

    def __getitem__(self, place: int) -> Record:
        return Record(self.names[place], self.offsets[place], self.sizes[place], self.crcs[place])

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Record]:
        columns = zip(self.names, self.offsets, self.sizes, self.crcs, strict=True)
        return map(Record._make, columns)

    def locate(self, storage: Storage) -> int:
        """The offset in the file of the first element of ``storage``, whose record has just the
        size that the pickle says."""
        if isinstance(storage, PickledStorage):
            return self.offsets[self.index["data.pkl"]] + storage.at
        place = self.index.get("data/" + storage.key)
        if place is None:
            raise InputError(self.path, f"its storage '{storage.key[:40]}' is missing")
        itemsize = storage.itemsize
        if itemsize is None:
            return self.offsets[place]
        if self.sizes[place] != storage.root_numel * itemsize:
            raise InputError(
                self.path,
                f"its storage '{storage.key[:40]}' has {self.sizes[place]:,} bytes, not"
                f" {storage.root_numel:,} elements of {itemsize}",
            )
        return self.offsets[place] + storage.start * itemsize


def read_archive(read: Read, path: str, size: int) -> Archive:
    """The records of the zip of ``size`` bytes at ``path``; InputError unless they tile it exactly
    and are those of a torch checkpoint."""
    entries, end = read_directory(read, path, size)
    root, slash, _ = entries[0][1].partition("/") if entries else ("", "", "")
    folder = root + "/"
    names = tuple(name[len(folder) :] for _, name, *_ in entries if name.startswith(folder))
    starts = _starts(read, path, entries, end)
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise torchscript(path)
    if not slash or "data.pkl" not in names:
        raise no_data(path)
    if len(names) != len(entries):
        raise InputError(path, "its zip has records outside its folder")
    sizes = array("q", [entry[2] for entry in entries])
    crcs = array("I", [entry[4] for entry in entries])
    archive = Archive(path, root, names, starts, sizes, crcs)

    def small(name: str, default: bytes) -> bytes:
        record = archive.record(name)
        return default if record is None else bytes(read(record.offset, min(record.size, 64)))

    if small("byteorder", b"little") != b"little":
        raise big_endian(path)
    alignment = small(".storage_alignment", b"64") or b"64"
    if not alignment.isdigit() or not 0 < int(alignment) <= 1 << 30:
        raise InputError(path, "corrupt: its storage alignment is no number")
    return replace(archive, alignment=int(alignment))


def _starts(read: Read, path: str, entries: Sequence[Entry], end: int) -> array[int]:
    """Where the bytes of each entry start, by its local header; nothing but headers and data lies
    before the directory at ``end``."""

    def places() -> Iterator[tuple[int, int]]:
        for header, name, *_ in entries:
            size = LOCAL.size + len(name.encode())
            if header + size > end:
                raise InputError(path, f"corrupt zip: '{name}' starts beyond its data")
            yield header, size

    starts = array("q")
    position = slack = 0
    for (header, name, size, flags, _), (block, at) in zip(
        entries, read_places(read, places()), strict=True
    ):
        gap = header - position
        if gap < 0:
            raise InputError(path, f"corrupt zip: '{name}' overlaps the record before it")
        if gap > slack:
            raise InputError(path, f"corrupt zip: {gap:,} stray bytes before '{name}'")
        start = header + _data_offset(path, name, size, flags, block, at)
        position = start + size
        if position > end:
            raise InputError(path, f"corrupt zip: '{name}' reaches beyond the data")
        starts.append(start)
        # A descriptor may follow.
        slack = 24 if flags & DESCRIBED else 0
    if not 0 <= end - position <= slack:
        raise InputError(path, "corrupt zip: its directory does not follow its last record")
    return starts


def _data_offset(
    path: str, name: str, size: int, flags: int, block: bytes | bytearray, at: int
) -> int:
    """How far behind its local header (in ``block`` at ``at``) the bytes of a member start."""
    kind, local_flags, method, packed, full, named, extra = _FIELDS.unpack_from(block, at)
    raw = name.encode()
    at += LOCAL.size
    if kind != b"PK\3\4" or named != len(raw) or not block.startswith(raw, at):
        raise InputError(path, f"corrupt zip: the header of '{name}' is not where it should be")
    if method != 0 or local_flags & ~KNOWN_FLAGS:
        raise InputError(path, f"its record '{name}' is compressed or encrypted")
    if (local_flags ^ flags) & DESCRIBED:
        raise InputError(path, f"corrupt zip: two accounts of '{name}'")
    # 0 with a descriptor behind the data; the limit where a 64-bit field has the sizes.
    if (packed != size or full != size) and not {packed, full} <= {
        size,
        MAX32,
        0 if flags & DESCRIBED else size,
    }:
        raise InputError(path, f"corrupt zip: two sizes of '{name}'")
    length: int = LOCAL.size + named + extra
    return length


def read_pickle(read: Read, archive: Archive) -> bytes:
    """The bytes of data.pkl."""
    record = archive[archive.index["data.pkl"]]
    if record.size > MAX_BYTES:
        raise InputError(archive.path, f"its pickle is larger than {MAX_BYTES >> 20} MiB")
    return bytes(read(record.offset, record.size))


def read_graph(read: Read, archive: Archive) -> Graph:
    """The unpickled data.pkl, all of whose storages have their records."""
    graph = unpickle(archive.path, read_pickle(read, archive))
    for storage in graph.storages:
        archive.locate(storage)
    return graph
