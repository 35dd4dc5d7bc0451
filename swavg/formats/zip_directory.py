"""The records of a zip: where each lies, checked before any of it is believed.

Readers take members by their offsets and never look at the rest of the zip, so everything that
could make two of them disagree is refused: encryption, overlaps, holes, repeated names.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from swavg.errors import InputError
from swavg.formats.blocks import Read, read_places

LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR64 = struct.Struct("<4sIQI")
MAX16, MAX32 = 0xFFFF, 0xFFFFFFFF
DESCRIBED = 0x0008

# Sizes in a descriptor, UTF-8 name, and the two bits that only say how hard deflate tried.
KNOWN_FLAGS = 0x0808 | 0x0006
_MAX_DIRECTORY = 32 << 20
_MAX_ENTRIES = 250_000
# Of LOCAL: signature, flags, method, packed and full size, lengths of name and extra field.
_LOCAL_FIELDS = struct.Struct("<4s2x2H8x2I2H")
# Of CENTRAL: signature, flags, method, CRC, packed and full size, lengths of name, extra field and
# comment, disk, header offset.
_FIELDS = struct.Struct("<4s4x2H4x3I4H6xI")


class Entry(NamedTuple):
    """What the directory says of a member, whose local header is at the offset ``header``; ``size``
    and ``packed`` count its bytes unpacked and as they lie in the file (``method`` 0: as it is)."""

    header: int
    name: str
    size: int
    flags: int
    crc: int
    method: int
    packed: int


def read_members(read: Read, path: str, size: int) -> list[tuple[Entry, int]]:
    """The entries of the zip of ``size`` bytes, each with where its bytes start."""
    entries, end = read_directory(read, path, size)
    return list(zip(entries, data_offsets(read, path, entries, end), strict=True))


def read_directory(read: Read, path: str, size: int) -> tuple[list[Entry], int]:
    """The entries of the zip of ``size`` bytes, by offset, and where its directory begins."""
    count, offset, length = _place(read, path, size)
    if length > _MAX_DIRECTORY:
        raise InputError(
            path, f"its zip directory takes {length:,} bytes, more than any checkpoint"
        )
    if count * CENTRAL.size > length:
        raise InputError(path, f"corrupt zip directory: {count:,} entries in {length:,} bytes")
    if count > _MAX_ENTRIES:
        raise InputError(path, f"its zip has {count:,} records, more than any checkpoint")
    entries = _entries(path, bytes(read(offset, length)), count)
    entries.sort()
    return entries, offset


def data_offsets(read: Read, path: str, entries: Sequence[Entry], end: int) -> array[int]:
    """Where the bytes of each entry start, by its local header; nothing but headers and data lies
    before the directory at ``end``."""

    def places() -> Iterator[tuple[int, int]]:
        for each in entries:
            size = LOCAL.size + len(each.name.encode())
            if each.header + size > end:
                raise InputError(path, f"corrupt zip: '{each.name}' starts beyond its data")
            yield each.header, size

    starts = array("q")
    position = slack = 0
    for entry, (block, at) in zip(entries, read_places(read, places()), strict=True):
        gap = entry.header - position
        if gap < 0:
            raise InputError(path, f"corrupt zip: '{entry.name}' overlaps the record before it")
        if gap > slack:
            raise InputError(path, f"corrupt zip: {gap:,} stray bytes before '{entry.name}'")
        start = entry.header + _data_offset(path, entry, block, at)
        position = start + entry.packed
        if position > end:
            raise InputError(path, f"corrupt zip: '{entry.name}' reaches beyond the data")
        starts.append(start)
        # A descriptor may follow.
        slack = 24 if entry.flags & DESCRIBED else 0
    if not 0 <= end - position <= slack:
        raise InputError(path, "corrupt zip: its directory does not follow its last record")
    return starts


def _data_offset(path: str, entry: Entry, block: bytes | bytearray, at: int) -> int:
    """How far behind its local header (in ``block`` at ``at``) the bytes of a member start."""
    _, name, size, flags, _, method, packed = entry
    kind, local_flags, local_method, local_packed, local_size, named, extra = (
        _LOCAL_FIELDS.unpack_from(block, at)
    )
    raw = name.encode()
    at += LOCAL.size
    if kind != b"PK\3\4" or named != len(raw) or not block.startswith(raw, at):
        raise InputError(path, f"corrupt zip: the header of '{name}' is not where it should be")
    if local_method != method or local_flags & ~KNOWN_FLAGS:
        raise InputError(path, f"its record '{name}' is compressed or encrypted")
    if (local_flags ^ flags) & DESCRIBED:
        raise InputError(path, f"corrupt zip: two accounts of '{name}'")
    # 0 with a descriptor behind the data; the limit where a 64-bit field has the sizes.
    vague = {MAX32, 0} if flags & DESCRIBED else {MAX32}
    if local_packed not in (packed, *vague) or local_size not in (size, *vague):
        raise InputError(path, f"corrupt zip: two sizes of '{name}'")
    length: int = LOCAL.size + named + extra
    return length


def _place(read: Read, path: str, size: int) -> tuple[int, int, int]:
    """Count, offset and size of the central directory."""
    tail_size = min(size, END.size + MAX16)
    tail = read(size - tail_size, tail_size)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < END.size:
        raise InputError(
            path,
            "truncated: the zip directory at its end is missing",
            hint="Was the copy or the training run interrupted while writing it?",
        )
    _, disk, first_disk, here, count, length, offset, comment = END.unpack_from(tail, at)
    end = size - tail_size + at
    if end + END.size + comment != size:
        extra = size - end - END.size
        raise InputError(path, f"{extra:,} stray bytes follow its zip directory")
    last = end
    if end >= LOCATOR64.size:
        locator = read(end - LOCATOR64.size, LOCATOR64.size)
        if locator.startswith(b"PK\6\7"):
            last = LOCATOR64.unpack(locator)[2]
            if last + END64.size + LOCATOR64.size != end:
                raise InputError(
                    path, "corrupt zip: its 64-bit directory is not where it should be"
                )
            wide = END64.unpack(read(last, END64.size))
            if wide[0] != b"PK\6\6" or wide[4] or wide[5] or wide[6] != wide[7]:
                raise InputError(path, "corrupt zip: its 64-bit directory cannot be read")
            narrow = ((count, wide[7], MAX16), (length, wide[8], MAX32), (offset, wide[9], MAX32))
            if any(small != large and small != limit for small, large, limit in narrow):
                raise InputError(path, "corrupt zip: its two directories disagree")
            count, length, offset = wide[7:]
    if disk or first_disk or here not in (count, MAX16):
        raise InputError(path, "one part of a zip in several parts")
    if offset + length != last:
        raise InputError(
            path, "corrupt zip: its offsets do not add up (bytes were put in front, or cut out)"
        )
    return count, offset, length


def _entries(path: str, data: bytes, count: int) -> list[Entry]:
    found: list[Entry] = []
    seen: set[str] = set()
    at = 0
    for _ in range(count):
        if len(data) - at < CENTRAL.size:
            raise InputError(path, "corrupt zip directory")
        kind, flags, method, crc, packed, size, named, extra, comment, disk, header = (
            _FIELDS.unpack_from(data, at)
        )
        if kind != b"PK\1\2":
            raise InputError(path, "corrupt zip directory")
        at += CENTRAL.size
        name = _name(path, data[at : at + named])
        at += named
        if header == MAX32 or size == MAX32 or packed == MAX32:
            size, packed, header = _wide(path, name, data[at : at + extra], size, packed, header)
        at += extra + comment
        if flags & ~KNOWN_FLAGS:
            raise InputError(path, f"its record '{name}' is encrypted or patched")
        if (packed != size and not method) or disk not in (0, MAX16):
            raise InputError(path, f"corrupt zip: '{name}' has two sizes")
        if name in seen:
            raise InputError(path, f"corrupt zip: '{name}' is there twice")
        seen.add(name)
        found.append(Entry(header, name, size, flags, crc, method, packed))
    if at != len(data):
        raise InputError(path, "corrupt zip directory: it holds more than its entries")
    return found


def _name(path: str, raw: bytes) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise InputError(path, f"a zip record has an unreadable name {raw[:40]!r}") from None
    # Where some readers end a name.
    if not name or "\0" in name:
        raise InputError(path, f"a zip record has the unsafe name {name[:80]!r}")
    return name


def _wide(
    path: str, name: str, extra: bytes, size: int, packed: int, header: int
) -> tuple[int, int, int]:
    """Size, packed size and header offset, those at the 32-bit limit from the 64-bit field."""
    values = [size, packed, header]
    missing = [index for index, value in enumerate(values) if value == MAX32]
    at = 0
    while missing and at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        field = extra[at + 4 : at + 4 + length]
        at += 4 + length
        if kind == 1 and len(field) >= 8 * len(missing):
            wide = struct.unpack_from(f"<{len(missing)}Q", field)
            for index, value in zip(missing, wide, strict=True):
                values[index] = value
            missing = []
    if missing:
        raise InputError(path, f"corrupt zip: '{name}' lacks its 64-bit sizes")
    return values[0], values[1], values[2]
