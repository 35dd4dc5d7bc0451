"""The central directory of a zip: its entries, each checked, in the order of the file."""

from __future__ import annotations

import struct

from swavg.errors import InputError, NoWeightsError
from swavg.formats.torch.blocks import Read

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
# Of CENTRAL: signature, flags, method, CRC, packed and full size, lengths of name, extra field and
# comment, disk, header offset.
_FIELDS = struct.Struct("<4s4x2H4x3I4H6xI")

Entry = tuple[int, str, int, int, int]
"""Offset of the local header, name, size in bytes, flags, CRC-32."""


def read_directory(read: Read, path: str, size: int) -> tuple[list[Entry], int]:
    """The entries of the zip of ``size`` bytes, by offset, and where its directory begins."""
    count, offset, length = _place(read, path, size)
    if length > _MAX_DIRECTORY:
        raise InputError(
            path, f"its zip directory takes {length:,} bytes, more than any torch file"
        )
    if count * CENTRAL.size > length:
        raise InputError(path, f"corrupt zip directory: {count:,} entries in {length:,} bytes")
    if count > _MAX_ENTRIES:
        raise InputError(path, f"its zip has {count:,} records, more than any torch file")
    entries = _entries(path, bytes(read(offset, length)), count)
    entries.sort()
    return entries, offset


def torchscript(path: str) -> InputError:
    """The refusal of an archive that torch.jit.save wrote."""
    from swavg.formats.foreign import STATE_DICT, with_paths

    return InputError(
        path,
        "a TorchScript archive, which holds a program",
        hint=f"Save its state dict. This loads the program:\n{with_paths(STATE_DICT, path)}",
    )


def big_endian(path: str) -> InputError:
    """The refusal of what another kind of machine wrote."""
    from swavg.formats.foreign import LOAD_AND_SAVE, with_paths

    return InputError(
        path,
        "written on a big-endian machine, which swavg does not read",
        hint=f"torch does; load and save it again:\n{with_paths(LOAD_AND_SAVE, path)}",
    )


def no_data(path: str) -> InputError:
    """The refusal of a zip that torch did not write."""
    from swavg.formats.foreign import UNZIP, with_paths

    return NoWeightsError(
        path,
        "a zip, but no torch checkpoint (it has no data.pkl)",
        hint=with_paths(UNZIP, path),
    )


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
        if method != 0:
            raise _compressed(path, name) if b"/data.pkl" in data else no_data(path)
        if packed != size or disk not in (0, MAX16):
            raise InputError(path, f"corrupt zip: '{name}' has two sizes")
        if name in seen:
            raise InputError(path, f"corrupt zip: '{name}' is there twice")
        seen.add(name)
        found.append((header, name, size, flags, crc))
    if at != len(data):
        raise InputError(path, "corrupt zip directory: it holds more than its entries")
    return found


def _compressed(path: str, name: str) -> InputError:
    if "/code/" in name:
        return torchscript(path)
    from swavg.formats.foreign import LOAD_AND_SAVE, with_paths

    return InputError(
        path,
        f"its record '{name}' is compressed; torch stores records as they are",
        hint=f"Load and save it again:\n{with_paths(LOAD_AND_SAVE, path)}",
    )


def _name(path: str, raw: bytes) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise InputError(path, f"a zip record has an unreadable name {raw[:40]!r}") from None
    if (
        not name
        or name[0] == "/"
        or "\0" in name
        or "\\" in name
        or (".." in name and ".." in name.split("/"))
    ):
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
