"""Opening .npz files: where each array lies, by the zip's directory and the array's own header."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from swavg.errors import InputError, NoWeightsError, quoted
from swavg.formats.blocks import Read, read_places
from swavg.formats.checkpoint import Checkpoint, Extras, Scalar
from swavg.formats.npz.header import Header, header_size, parse
from swavg.formats.records import Record
from swavg.formats.tensors import Shared, TableBuilder
from swavg.formats.zip_directory import Entry, read_members
from swavg.formats.zip_layout import Member
from swavg.formats.zip_recipe import read_recipe
from swavg.storage.crc import combined
from swavg.storage.deflated import Deflated
from swavg.storage.paths import FileReader, find_file
from swavg.storage.pool import Pool
from swavg.storage.sources import Source

SUFFIX = ".npy"
_DEFLATED = 8
_USUAL = 128
"""Bytes of most headers."""
_LEAST = 12
"""Bytes of a header that tell its size."""
_MAX_SCALARS = 256
_MAX_HEADERS = 48 << 20
"""Bytes of all headers at most: they are read when a file is opened."""


class Records:
    """The data of arrays of one source, with their CRC-32: computed when they are asked for from
    that of the member, which counts the header too."""

    def __init__(self) -> None:
        self._members: list[tuple[Record, int, int]] = []

    def add(self, member: Record, head: bytes) -> None:
        """A member that begins with ``head``."""
        self._members.append((member, len(head), zlib.crc32(head)))

    def __iter__(self) -> Iterator[Record]:
        for (name, offset, size, crc), head, head_crc in self._members:
            rest = size - head
            yield Record(name, offset + head, rest, crc ^ combined([(head_crc, head), (0, rest)]))


@dataclass(eq=False)
class _Contents:
    """What was found in the members, which are added one by one."""

    path: str
    file: Source
    pool: Pool
    builder: TableBuilder = field(default_factory=TableBuilder)
    sources: list[Source] = field(default_factory=list)
    records: dict[int, Records] = field(default_factory=lambda: {0: Records()})
    kept: list[Member] = field(default_factory=list)
    scalars: dict[str, Scalar] = field(default_factory=dict)
    _known: dict[bytes, Header] = field(default_factory=dict)
    _headers: int = 0

    def add(self, entry: Entry, start: int, first: bytes) -> None:
        """A member whose bytes lie at ``start``, and begin with ``first`` as they are stored."""
        _, name, size, _, crc, method, packed = entry
        if method not in (0, _DEFLATED):
            raise InputError(self.path, f"its '{name}' is compressed in a way (method {method})"
                                        " that NumPy does not write")  # fmt: skip
        source, offset = 0, start
        if name.endswith(SUFFIX):
            if method:
                source, offset = len(self.sources), 0
                self.sources.append(Deflated(self.file, start, packed, size, crc))
            head = self._head(name, source, offset, size, _inflated(first) if method else first)
            if self._add_array(name.removesuffix(SUFFIX), head, source, offset, size, crc):
                return
            if method:
                self.sources.pop()
        self.kept.append(Member.of(entry, start))

    def _head(self, name: str, source: int, offset: int, size: int, first: bytes) -> bytes:
        """The header of a member of ``size`` bytes."""
        whole = self.sources[source]
        if len(first) < min(size, _LEAST):
            first = bytes(self.pool.read(whole, offset, min(size, _USUAL)))
        length = header_size(self.path, name, first)
        if length > size:
            raise InputError(self.path, f"its '{name}' is cut short in its header")
        self._headers += length
        if self._headers > _MAX_HEADERS:
            raise InputError(self.path, "has headers of more bytes than arrays could need")
        if length > len(first):
            return bytes(self.pool.read(whole, offset, length))
        return first[:length]

    def _add_array(
        self, name: str, head: bytes, source: int, offset: int, size: int, crc: int
    ) -> bool:
        """An array of numbers; False for one of something else."""
        header = self._known.get(head)
        if header is None:
            header = self._known[head] = parse(self.path, name, head)
        dtype, shape = header.dtype, header.shape
        if dtype is None:
            return False
        nbytes = dtype.nbytes(math.prod(shape))
        if header.size + nbytes != size:
            raise InputError(
                self.path,
                f"'{name}' is {list(shape)} of {dtype}, {nbytes:,} bytes, but its member has"
                f" {size - header.size:,}",
            )
        self.builder.add(name, (dtype, shape, header.strides), offset + header.size, source)
        self.records.setdefault(source, Records()).add(Record(name, offset, size, crc), head)
        if not shape and dtype.kind in ("float", "integer") and len(self.scalars) < _MAX_SCALARS:
            raw = self.pool.read(self.sources[source], offset + header.size, dtype.itemsize)
            self.scalars[name] = dtype.number(raw)
        return True


def _inflated(first: bytes) -> bytes:
    """What the first bytes of a deflated member begin with; nothing if they are damaged. It takes a
    tenth of the time of opening the member, of which there may be very many."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(first, _USUAL)
    except zlib.error:
        return b""


def open_npz(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    """Open the .npz at ``path``. InputError if it is damaged, or holds arrays of no known dtype.

    Arrays of text, objects or records are left out; nothing is unpickled.
    ``key`` means nothing here.
    """
    file = find_file(path)
    with Pool() as pool:
        read: Read = FileReader(pool, file)
        members = read_members(read, path, file.size)
        contents = _Contents(path, file, pool, sources=[file])
        places = ((start, min(each.size, each.packed, _USUAL)) for each, start in members)
        for (entry, start), (block, at) in zip(members, read_places(read, places), strict=True):
            size = min(entry.size, entry.packed, _USUAL)
            contents.add(entry, start, bytes(block[at : at + size]))
        recipe = read_recipe(read, file.size)
    table = contents.builder.build(shared)
    names = [each.name.removesuffix(SUFFIX) for each in contents.kept]
    if not len(table):
        raise NoWeightsError(path, "holds no arrays of numbers")
    notes = []
    if names:
        notes.append(f"{quoted(names, 5)}: no numbers (text, objects, records)")
    extras = Extras(
        scalars=contents.scalars,
        records=contents.records,
        recipe=recipe,
        non_tensors=tuple(names),
        template=tuple(contents.kept),
    )
    return Checkpoint(
        path, "npz", tuple(contents.sources), table, notes=tuple(notes), extras=extras
    )
