"""Writing a torch zip as one stream: every offset is known beforehand, CRCs follow the data.

Alignment, descriptors and 64-bit fields are as torch writes them, because torch's loader computes
offsets from them (``getPadding`` in its inline_container.cc) instead of reading them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from swavg.formats.base import Buffer, Layout
from swavg.formats.torch_records import CENTRAL, END, END64, LOCAL, LOCATOR64, MAX16, MAX32

ALIGNMENT = 64
_DESCRIBED, _UTF8 = 0x0008, 0x0800
# The zip epoch: the same averages give the same bytes on any day.
_DATE = 0x0021


@dataclass(frozen=True, slots=True)
class Member:
    """A record to write: full name, size in bytes, and the bytes unless tasks give them."""

    name: str
    size: int
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """A member whose local header is at ``header`` and whose bytes start at ``start``."""

    member: Member
    header: int
    start: int

    @property
    def wide(self) -> bool:
        """Whether the descriptor has 64-bit sizes."""
        return self.header >= MAX32 or self.member.size >= MAX32

    @property
    def end(self) -> int:
        """Where the next header goes: behind the descriptor, which empty records lack."""
        size = self.member.size
        return self.start + size + (0 if not size else 24 if self.wide else 16)

    @property
    def flags(self) -> int:
        return _UTF8 | (_DESCRIBED if self.member.size else 0)

    @property
    def local(self) -> bytes:
        """The local header, padded by an extra field up to ``start``."""
        name, size = self.member.name.encode(), self.member.size
        room = self.start - self.header - LOCAL.size - len(name)
        big = size >= MAX32
        extra = struct.pack("<2H2Q", 1, 16, size, size) if big else b""
        padding = room - len(extra) - 4
        extra += struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        shown = MAX32 if big else 0
        needed = 45 if self.wide else 20
        return (
            LOCAL.pack(
                b"PK\3\4", needed, self.flags, 0, 0, _DATE, 0, shown, shown, len(name), len(extra)
            )
            + name
            + extra
        )

    def descriptor(self, crc: int) -> bytes:
        size = self.member.size
        if not size:
            return b""
        return struct.pack("<4sI2Q" if self.wide else "<4s3I", b"PK\7\10", crc, size, size)

    def entry(self, crc: int) -> bytes:
        """The member's entry in the central directory."""
        name, size, header = self.member.name.encode(), self.member.size, self.header
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


def arranged(members: tuple[Member, ...], alignment: int = ALIGNMENT) -> tuple[Placed, ...]:
    """The members one behind the other, each one's bytes at a multiple of ``alignment``."""
    placed, cursor = [], 0
    for member in members:
        start = cursor + LOCAL.size + len(member.name.encode()) + 4
        if member.size >= MAX32 or cursor >= MAX32:
            start += 4 + 16 * (member.size >= MAX32) + 8 * (cursor >= MAX32)
        start += -start % alignment
        placed.append(Placed(member, cursor, start))
        cursor = placed[-1].end
    return tuple(placed)


def ending(count: int, offset: int, size: int) -> bytes:
    """What follows a central directory of ``count`` entries in ``size`` bytes at ``offset``."""
    wide = b""
    if count >= MAX16 or size >= MAX32 or offset >= MAX32:
        wide = END64.pack(b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
        wide += LOCATOR64.pack(b"PK\6\7", 0, offset + size, 1)
    shown = min(count, MAX16)
    return wide + END.pack(b"PK\5\6", 0, 0, shown, shown, min(size, MAX32), min(offset, MAX32), 0)


def archive_size(members: tuple[Member, ...], alignment: int = ALIGNMENT) -> int:
    """Bytes of the whole file."""
    placed = arranged(members, alignment)
    directory = sum(len(each.entry(0)) for each in placed)
    offset = placed[-1].end if placed else 0
    return offset + directory + len(ending(len(placed), offset, directory))


@dataclass(frozen=True)
class TorchZipLayout(Layout):
    """A torch zip of ``members``; those without a body take the bytes of the tasks, in order."""

    members: tuple[Member, ...] = ()
    alignment: int = ALIGNMENT

    format = "torch"

    def frame(self, chunks: Iterator[memoryview]) -> Iterator[Buffer]:
        source = _Source(chunks)
        crcs: list[int] = []
        placed = arranged(self.members, self.alignment)
        for each in placed:
            yield each.local
            crc = 0
            body = each.member.body
            for piece in source.take(each.member.size) if body is None else (body,):
                crc = zlib.crc32(piece, crc)
                yield piece
            crcs.append(crc)
            yield each.descriptor(crc)
        directory = b"".join(each.entry(crc) for each, crc in zip(placed, crcs, strict=True))
        offset = placed[-1].end if placed else 0
        yield directory + ending(len(placed), offset, len(directory))


class _Source:
    """The tasks' bytes, cut where records end."""

    def __init__(self, chunks: Iterator[memoryview]) -> None:
        self._chunks = chunks
        self._left = memoryview(b"")

    def take(self, size: int) -> Iterator[memoryview]:
        while size:
            if not len(self._left):
                self._left = memoryview(next(self._chunks)).cast("B")
                continue
            piece, self._left = self._left[:size], self._left[size:]
            size -= len(piece)
            yield piece
