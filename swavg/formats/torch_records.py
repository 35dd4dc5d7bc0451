"""The records of a torch zip archive: where each lies, checked before any of it is believed.

torch reads members by their offsets and never looks at the rest of the zip, so everything that
could make the two disagree is refused: compression, encryption, overlaps, holes, repeated names.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from swavg.errors import InputError
from swavg.formats.files import InputFile, read_exactly

LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR64 = struct.Struct("<4sIQI")
MAX16, MAX32 = 0xFFFF, 0xFFFFFFFF

# Bytes of the directory: some 300,000 records.
_MAX_DIRECTORY = 32 << 20
# Sizes in a descriptor, UTF-8 name, and the two bits that only say how hard deflate tried.
_KNOWN_FLAGS = 0x0808 | 0x0006
_DESCRIBED = 0x0008


@dataclass(frozen=True, slots=True)
class Record:
    """A stored member: full name, bytes from ``offset`` on in the file."""

    name: str
    offset: int
    size: int


def read_records(fd: int, file: InputFile) -> tuple[Record, ...]:
    """All members in the order of the file; InputError unless they tile it exactly."""
    path = file.path
    count, offset, length = _directory(fd, file)
    if length > _MAX_DIRECTORY:
        raise InputError(
            path, f"its zip directory takes {length:,} bytes, more than any torch file"
        )
    if count * CENTRAL.size > length:
        raise InputError(path, f"corrupt zip directory: {count:,} entries in {length:,} bytes")
    data = read_exactly(fd, file, offset, length)
    entries = _entries(path, data, count)
    entries.sort(key=lambda entry: entry[1])
    records, position = [], 0
    slack = 0
    for name, header, nbytes, flags in entries:
        gap = header - position
        if gap < 0:
            raise InputError(path, f"corrupt zip: '{name}' overlaps the record before it")
        if gap > slack:
            raise InputError(path, f"corrupt zip: {gap:,} stray bytes before '{name}'")
        start = _local(fd, file, name, header, nbytes, flags, offset)
        records.append(Record(name, start, nbytes))
        position = start + nbytes
        slack = 24 if flags & _DESCRIBED else 0
    if not 0 <= offset - position <= slack:
        raise InputError(path, "corrupt zip: its directory does not follow its last record")
    return tuple(records)


def _directory(fd: int, file: InputFile) -> tuple[int, int, int]:
    """Count, offset and size of the central directory."""
    path, size = file.path, file.size
    tail_size = min(size, END.size + MAX16)
    tail = read_exactly(fd, file, size - tail_size, tail_size)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < END.size:
        raise InputError(
            path,
            "truncated: the zip directory at its end is missing",
            hint="Was the copy or the training run interrupted while writing it?",
        )
    fields = END.unpack_from(tail, at)
    _, disk, first_disk, here, count, length, offset, comment = fields
    end = size - tail_size + at
    if end + END.size + comment != size:
        extra = size - end - END.size
        raise InputError(path, f"{extra:,} stray bytes follow its zip directory")
    last = end
    if end >= LOCATOR64.size:
        locator = read_exactly(fd, file, end - LOCATOR64.size, LOCATOR64.size)
        if locator.startswith(b"PK\6\7"):
            last = LOCATOR64.unpack(locator)[2]
            if last + END64.size + LOCATOR64.size != end:
                raise InputError(
                    path, "corrupt zip: its 64-bit directory is not where it should be"
                )
            wide = END64.unpack(read_exactly(fd, file, last, END64.size))
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


def _entries(path: str, data: bytearray, count: int) -> list[tuple[str, int, int, int]]:
    """Name, header offset, size and flags per entry of the central directory."""
    found, seen, at = [], set(), 0
    for _ in range(count):
        if len(data) - at < CENTRAL.size or not data.startswith(b"PK\1\2", at):
            raise InputError(path, "corrupt zip directory")
        fields = CENTRAL.unpack_from(data, at)
        flags, method, packed, size = fields[3], fields[4], fields[8], fields[9]
        raw_name, extra, comment, disk = fields[10], fields[11], fields[12], fields[13]
        header = fields[16]
        at += CENTRAL.size
        name = _name(path, data[at : at + raw_name])
        at += raw_name
        size, packed, header = _wide(path, name, data[at : at + extra], size, packed, header)
        at += extra + comment
        if flags & ~_KNOWN_FLAGS:
            raise InputError(path, f"its record '{name}' is encrypted or patched")
        if method != 0:
            raise _compressed(path, name)
        if packed != size or disk not in (0, MAX16):
            raise InputError(path, f"corrupt zip: '{name}' has two sizes")
        if name in seen:
            raise InputError(path, f"corrupt zip: '{name}' is there twice")
        seen.add(name)
        found.append((name, header, size, flags))
    if at != len(data):
        raise InputError(path, "corrupt zip directory: it holds more than its entries")
    return found


def _compressed(path: str, name: str) -> InputError:
    if "/code/" in name:
        return torchscript(path)
    return InputError(
        path,
        f"its record '{name}' is compressed; torch stores records as they are",
        hint="Load it and save it again with torch.save.",
    )


def torchscript(path: str) -> InputError:
    """The refusal of an archive that torch.jit.save wrote."""
    return InputError(
        path,
        "a TorchScript archive, which holds a program",
        hint="Save its state_dict() with torch.save instead.",
    )


def _name(path: str, raw: bytearray) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise InputError(path, f"a zip record has an unreadable name {bytes(raw[:40])!r}") from None
    if not name or "\0" in name or "\\" in name or ".." in name.split("/") or name[0] == "/":
        raise InputError(path, f"a zip record has the unsafe name {name[:80]!r}")
    return name


def _wide(
    path: str, name: str, extra: bytearray, size: int, packed: int, header: int
) -> tuple[int, int, int]:
    """Size, packed size and header offset, those at the 32-bit limit from the 64-bit field."""
    values = [size, packed, header]
    wanted = [index for index, value in enumerate(values) if value == MAX32]
    at = 0
    while wanted and at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        field = extra[at + 4 : at + 4 + length]
        at += 4 + length
        if kind == 1 and len(field) >= 8 * len(wanted):
            for index, value in zip(
                wanted, struct.unpack_from(f"<{len(wanted)}Q", field), strict=True
            ):
                values[index] = value
            wanted = []
    if wanted:
        raise InputError(path, f"corrupt zip: '{name}' lacks its 64-bit sizes")
    return values[0], values[1], values[2]


def _local(
    fd: int, file: InputFile, name: str, header: int, size: int, flags: int, directory: int
) -> int:
    """Where the bytes of a member start, by its local header."""
    path, raw = file.path, name.encode()
    if header + LOCAL.size + len(raw) > directory:
        raise InputError(path, f"corrupt zip: '{name}' starts beyond its data")
    data = read_exactly(fd, file, header, LOCAL.size + len(raw))
    kind, _, local_flags, method, _, _, _, packed, full, name_size, extra = LOCAL.unpack_from(data)
    if kind != b"PK\3\4" or data[LOCAL.size :] != raw or name_size != len(raw):
        raise InputError(path, f"corrupt zip: the header of '{name}' is not where it should be")
    if method != 0 or local_flags & ~_KNOWN_FLAGS:
        raise InputError(path, f"its record '{name}' is compressed or encrypted")
    if (local_flags ^ flags) & _DESCRIBED:
        raise InputError(path, f"corrupt zip: two accounts of '{name}'")
    start: int = header + LOCAL.size + name_size + extra
    # 0 with a descriptor behind the data; the limit where a 64-bit field has the sizes.
    allowed = (size, MAX32, 0) if flags & _DESCRIBED else (size, MAX32)
    if packed not in allowed or full not in allowed:
        raise InputError(path, f"corrupt zip: two sizes of '{name}'")
    if start + size > directory:
        raise InputError(path, f"corrupt zip: '{name}' reaches beyond the data")
    return start
