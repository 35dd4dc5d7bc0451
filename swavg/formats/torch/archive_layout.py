"""Writing a torch zip: every offset is known beforehand, CRCs and the directory follow the data.

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

from swavg.formats.checkpoint import Shape
from swavg.formats.layout import FileLayout, Kept, Specs
from swavg.formats.torch.zip_directory import CENTRAL, END, END64, LOCAL, LOCATOR64, MAX16, MAX32
from swavg.storage.crc import RegionChecksum, combined

ALIGNMENT = 64
_DESCRIBED, _UTF8 = 0x0008, 0x0800
# The zip epoch: the same averages give the same bytes on any day.
_DATE = 0x0021


@dataclass(frozen=True, slots=True)
class Member:
    """A record to write: full name, size in bytes, and the bytes unless regions give them. Once
    arranged, its local header is at ``header`` and its bytes start at ``start``."""

    name: str
    size: int
    body: bytes | None = None
    header: int = 0
    start: int = 0

    @property
    def wide(self) -> bool:
        """Whether the descriptor has 64-bit sizes."""
        return self.header >= MAX32 or self.size >= MAX32

    @property
    def end(self) -> int:
        """Where the next header goes: behind the descriptor, which empty records lack."""
        return self.start + self.size + (0 if not self.size else 24 if self.wide else 16)

    @property
    def flags(self) -> int:
        return _UTF8 | (_DESCRIBED if self.size else 0)

    @property
    def local(self) -> bytes:
        """The local header, padded by an extra field up to ``start``."""
        name, size = self.name.encode(), self.size
        room = self.start - self.header - LOCAL.size - len(name)
        big = size >= MAX32
        extra = struct.pack("<2H2Q", 1, 16, size, size) if big else b""
        padding = room - len(extra) - 4
        extra += struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        shown = MAX32 if big else 0
        needed = 45 if self.wide else 20
        fields = (needed, self.flags, 0, 0, _DATE, 0, shown, shown, len(name), len(extra))
        return LOCAL.pack(b"PK\3\4", *fields) + name + extra

    def descriptor(self, crc: int) -> bytes:
        size = self.size
        if not size:
            return b""
        return struct.pack("<4sI2Q" if self.wide else "<4s3I", b"PK\7\10", crc, size, size)

    def entry(self, crc: int) -> bytes:
        """The member's entry in the central directory."""
        name, size, header = self.name.encode(), self.size, self.header
        values = [value for value in (size, size, header) if value >= MAX32]
        extra = struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""
        needed = 45 if self.wide else 20
        shown = min(size, MAX32)
        return (
            CENTRAL.pack(
                b"PK\1\2", 45, needed, self.flags, 0, 0, _DATE, crc, shown, shown,
                len(name), len(extra), 0, 0, 0, 0, min(header, MAX32),
            )
            + name
            + extra
        )  # fmt: skip


def arranged(members: Sequence[Member], alignment: int = ALIGNMENT) -> Iterator[Member]:
    """The members one behind the other, each one's bytes at a multiple of ``alignment``."""
    cursor = 0
    for member in members:
        start = cursor + LOCAL.size + len(member.name.encode()) + 4
        if member.size >= MAX32 or cursor >= MAX32:
            start += 4 + 16 * (member.size >= MAX32) + 8 * (cursor >= MAX32)
        start += -start % alignment
        placed = Member(member.name, member.size, member.body, cursor, start)
        yield placed
        cursor = placed.end


def ending(count: int, offset: int, size: int) -> bytes:
    """What follows a central directory of ``count`` entries in ``size`` bytes at ``offset``."""
    wide = b""
    if count >= MAX16 or size >= MAX32 or offset >= MAX32:
        wide = END64.pack(b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
        wide += LOCATOR64.pack(b"PK\6\7", 0, offset + size, 1)
    shown = min(count, MAX16)
    return wide + END.pack(b"PK\5\6", 0, 0, shown, shown, min(size, MAX32), min(offset, MAX32), 0)


@dataclass(frozen=True, eq=False)
class CheckedLayout(FileLayout):
    """A file that ``check`` opens when it is finished; ``bodies`` are bytes at their offsets that
    depend on no region."""

    check: Callable[[str], None] = lambda path: None
    bodies: tuple[tuple[int, bytes], ...] = ()

    def fixed(self) -> Iterator[tuple[int, bytes]]:
        return iter(self.bodies)

    def verify(self, path: str) -> None:
        self.check(path)


@dataclass(frozen=True, eq=False)
class ArchiveLayout(CheckedLayout):
    """A torch zip; members without a body are filled by regions."""

    arrangement: tuple[Member, ...] = ()

    checksum = "crc32"

    def fixed(self) -> Iterator[tuple[int, bytes]]:
        return merge(self._own(), self.bodies, key=itemgetter(0)) if self.bodies else self._own()

    def _own(self) -> Iterator[tuple[int, bytes]]:
        for placed in self.arrangement:
            yield placed.header, placed.local
            if placed.body:
                yield placed.start, placed.body

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
                if placed.body is not None:
                    total = zlib.crc32(placed.body)
                else:
                    parts = (
                        (made[start] if start in made else crc(start), size)
                        for start, size in regions[first:last]
                        if size
                    )
                    total = combined(parts)
                entries.append(placed.entry(total))
                return placed.descriptor(total)

            yield stop, describe

        def directory() -> bytes:
            data = b"".join(entries)
            return data + ending(len(entries), self._end, len(data))

        yield self._end, directory

    @property
    def _end(self) -> int:
        """Where the directory begins."""
        return self.arrangement[-1].end


def lay_out_archive(
    arrangement: tuple[Member, ...],
    specs: Specs,
    places: Sequence[tuple[int, int]],
    *,
    name: str = "",
    kept: Sequence[Kept] = (),
    bodies: Sequence[tuple[int, bytes]] = (),
    orders: Mapping[int, Shape] | None = None,
    check: Callable[[str], None],
) -> ArchiveLayout:
    """An archive so arranged; ``places`` are tensor and offset in the file, ascending."""
    directory = sum(len(placed.entry(0)) for placed in arrangement)
    end = arrangement[-1].end
    return ArchiveLayout(
        name,
        end + directory + len(ending(len(arrangement), end, directory)),
        specs,
        array("I", [number for number, _ in places]),
        array("q", [offset for _, offset in places]),
        tuple(kept),
        orders or {},
        check,
        tuple(bodies),
        arrangement,
    )
