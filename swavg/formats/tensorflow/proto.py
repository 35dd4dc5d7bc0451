"""Protocol buffers by hand: as much of the wire format as TensorFlow's bundles take."""

from __future__ import annotations

import struct
from collections.abc import Iterator

Value = int | bytes
_FIXED32 = struct.Struct("<I")


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at ``at``, and where it ends. ValueError if it is cut short or too long."""
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number is cut short")


def as_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """Number and value of each field of a message, in its order. ValueError if it is none."""
    at, size = 0, len(data)
    while at < size:
        tag, at = (data[at], at + 1) if data[at] < 0x80 else varint(data, at)
        kind = tag & 7
        if kind in (0, 2):
            # Nearly all numbers are of one byte.
            one = at < size and data[at] < 0x80
            value, at = (data[at], at + 1) if one else varint(data, at)
            if kind == 0:
                yield tag >> 3, value
                continue
        elif kind in (1, 5):
            value = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of the wire type {kind}")
        end = at + value
        if end > size:
            raise ValueError("a field is cut short")
        yield tag >> 3, data[at:end] if kind == 2 else int.from_bytes(data[at:end], "little")
        at = end


def messages(data: bytes, number: int) -> Iterator[bytes]:
    """The fields of this number that are messages or strings."""
    for field, value in fields(data):
        if field == number and isinstance(value, bytes):
            yield value


def field(number: int, value: Value) -> bytes:
    """A number, or the bytes of a string or a message, as a field."""
    if isinstance(value, bytes):
        return as_varint(number << 3 | 2) + as_varint(len(value)) + value
    return as_varint(number << 3) + as_varint(value)


def fixed32(number: int, value: int) -> bytes:
    return as_varint(number << 3 | 5) + _FIXED32.pack(value)
