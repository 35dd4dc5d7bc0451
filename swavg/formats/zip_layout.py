"""Writing a zip: every offset is known beforehand, CRCs and the directory follow the data.

Alignment, descriptors and 64-bit fields are as torch writes them, because torch's loader computes
offsets from them (``getPadding`` in its inline_container.cc) instead of reading them.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from operator import itemgetter

from swavg.errors import OutputError
from swavg.formats.layout import FileLayout, Kept, Specs, opening
from swavg.formats.tensors import Shape
from swavg.formats.zip_directory import (
    CENTRAL,
    END,
    END64,
    LOCAL,
    LOCATOR64,
    MAX16,
    MAX32,
    Entry,
    read_members,
)
from swavg.storage.crc import RegionChecksum, combined
from swavg.storage.paths import reading

ALIGNMENT = 64
_DESCRIBED, _UTF8 = 0x0008, 0x0800
# The zip epoch: the same averages give the same bytes on any day.
_DATE = 0x0021


@dataclass(frozen=True, slots=True)
class Member:
    """A record to write: full name, size in bytes in the file, and the bytes that it begins with:
    regions give the rest. One that is copied as it was ``deflated`` has the CRC-32 and the size
    that its bytes have unpacked. Once arranged, its local header is at ``header`` and its bytes
    start at ``start``."""

    name: str
    size: int
    head: bytes = b""
    deflated: tuple[int, int] | None = None
    header: int = 0
    start: int = 0

    @classmethod
    def of(cls, entry: Entry, start: int) -> Member:
        """A member as it lies in a file, to be copied."""
        deflated = (entry.crc, entry.size) if entry.method else None
        return cls(entry.name, entry.packed, b"", deflated, entry.header, start)

    @property
    def unpacked(self) -> int:
        """Bytes that a reader gets."""
        return self.size if self.deflated is None else self.deflated[1]

    @property
    def wide(self) -> bool:
        """Whether the descriptor has 64-bit sizes."""
        return max(self.header, self.size, self.unpacked) >= MAX32

    @property
    def end(self) -> int:
        """Where the next header goes: behind the descriptor, which empty records lack."""
        return self.start + self.size + (0 if not self.size else 24 if self.wide else 16)

    @property
    def method(self) -> int:
        return 0 if self.deflated is None else 8

    @property
    def flags(self) -> int:
        return _UTF8 | (_DESCRIBED if self.size else 0)

    @property
    def local(self) -> bytes:
        """The local header, padded by an extra field up to ``start``."""
        name, size = self.name.encode(), self.size
        room = self.start - self.header - LOCAL.size - len(name)
        big = max(size, self.unpacked) >= MAX32
        extra = struct.pack("<2H2Q", 1, 16, self.unpacked, size) if big else b""
        padding = room - len(extra) - 4
        extra += struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        shown = MAX32 if big else 0
        needed = 45 if self.wide else 20
        fields = (needed, self.flags, self.method, 0, _DATE, 0, shown, shown, len(name), len(extra))
        return LOCAL.pack(b"PK\3\4", *fields) + name + extra

    def descriptor(self, crc: int) -> bytes:
        size = self.size
        if not size:
            return b""
        kind = "<4sI2Q" if self.wide else "<4s3I"
        return struct.pack(kind, b"PK\7\10", crc, size, self.unpacked)

    def entry(self, crc: int) -> bytes:
        """The member's entry in the central directory."""
        name, size, header = self.name.encode(), self.size, self.header
        values = [value for value in (self.unpacked, size, header) if value >= MAX32]
        extra = struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""
        needed = 45 if self.wide else 20
        shown = min(size, MAX32), min(self.unpacked, MAX32)
        return (
            CENTRAL.pack(
                b"PK\1\2", 45, needed, self.flags, self.method, 0, _DATE, crc, *shown,
                len(name), len(extra), 0, 0, 0, 0, min(header, MAX32),
            )
            + name
            + extra
        )  # fmt: skip


def check_members(path: str, arrangement: Sequence[Member]) -> None:
    """OutputError unless the zip at ``path`` has just these members, where they were planned."""
    with opening(path), reading(path) as (file, read):
        members = read_members(read, path, file.size)
    found = [(each.name, start, each.packed) for each, start in members]
    if found != [(each.name, each.start, each.size) for each in arrangement]:
        raise OutputError(path, "the finished file has other members than were planned")


def arranged(members: Sequence[Member], alignment: int = ALIGNMENT) -> Iterator[Member]:
    """The members one behind the other, each one's bytes at a multiple of ``alignment``."""
    cursor = 0
    for member in members:
        start = cursor + LOCAL.size + len(member.name.encode()) + 4
        big = max(member.size, member.unpacked) >= MAX32
        if big or cursor >= MAX32:
            start += 4 + 16 * big + 8 * (cursor >= MAX32)
        start += -start % alignment
        placed = Member(member.name, member.size, member.head, member.deflated, cursor, start)
        yield placed
        cursor = placed.end


def ending(count: int, offset: int, size: int, comment: bytes = b"") -> bytes:
    """What follows a central directory of ``count`` entries in ``size`` bytes at ``offset``."""
    wide = b""
    if count >= MAX16 or size >= MAX32 or offset >= MAX32:
        wide = END64.pack(b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
        wide += LOCATOR64.pack(b"PK\6\7", 0, offset + size, 1)
    shown = min(count, MAX16)
    places = min(size, MAX32), min(offset, MAX32), len(comment)
    return wide + END.pack(b"PK\5\6", 0, 0, shown, shown, *places) + comment


@dataclass(frozen=True, eq=False, repr=False)
class ArchiveLayout(FileLayout):
    """A zip whose members are filled by regions behind their heads."""

    arrangement: tuple[Member, ...] = ()
    comment: bytes = b""

    checksum = "crc32"

    def fixed(self) -> Iterator[tuple[int, bytes]]:
        return merge(self._own(), self.bodies, key=itemgetter(0)) if self.bodies else self._own()

    def _own(self) -> Iterator[tuple[int, bytes]]:
        for placed in self.arrangement:
            yield placed.header, placed.local
            if placed.head:
                yield placed.start, placed.head

    def deferred(self, crc: RegionChecksum) -> Iterator[tuple[int, Callable[[], bytes]]]:
        of_tensor = self.specs.sizes
        made = {offset: zlib.crc32(data) for offset, data in self.bodies}
        regions = sorted(
            (
                *zip(self.offsets, map(of_tensor.__getitem__, self.tensors), strict=True),
                *((kept.offset, kept.nbytes) for kept in self.kept),
                *((offset, len(data)) for offset, data in self.bodies),
            )
        )
        entries: list[bytes] = []
        at = 0
        for placed in self.arrangement:
            stop, first = placed.start + placed.size, at
            while at < len(regions) and regions[at][0] < stop:
                at += 1

            def describe(placed: Member = placed, first: int = first, last: int = at) -> bytes:
                if placed.deflated is not None:
                    total = placed.deflated[0]
                else:
                    parts = (
                        (made[start] if start in made else crc(start), size)
                        for start, size in regions[first:last]
                        if size
                    )
                    total = combined([(zlib.crc32(placed.head), len(placed.head)), *parts])
                entries.append(placed.entry(total))
                return placed.descriptor(total)

            yield stop, describe

        def directory() -> bytes:
            data = b"".join(entries)
            return data + ending(len(entries), self._end, len(data), self.comment)

        yield self._end, directory

    @property
    def _end(self) -> int:
        """Where the directory begins."""
        return self.arrangement[-1].end


def lay_out_archive(
    arrangement: tuple[Member, ...],
    specs: Specs,
    tensors: Sequence[int],
    offsets: Sequence[int],
    *,
    name: str = "",
    kept: Sequence[Kept] = (),
    bodies: Sequence[tuple[int, bytes]] = (),
    orders: Mapping[int, Shape] | None = None,
    comment: bytes = b"",
    check: Callable[[str], None],
) -> ArchiveLayout:
    """An archive so arranged, with ``tensors`` at these ``offsets`` in the file, ascending."""
    directory = sum(len(placed.entry(0)) for placed in arrangement)
    end = arrangement[-1].end
    return ArchiveLayout(
        name,
        end + directory + len(ending(len(arrangement), end, directory, comment)),
        specs,
        array("I", tensors),
        array("q", offsets),
        tuple(kept),
        orders or {},
        tuple(bodies),
        check,
        arrangement=arrangement,
        comment=comment,
    )
