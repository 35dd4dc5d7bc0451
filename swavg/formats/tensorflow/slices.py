"""Partitioned variables: under which keys the slices of a tensor stand, and that they tile it.

The keys are an ordered code: bytes that sort as the values do (TensorFlow's
``strings::OrderedCode``).
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter

from swavg.formats.overlaps import fault
from swavg.formats.tensorflow.bundle import Entry, Slice
from swavg.formats.tensors import Shape

NUL = b"\0"
"""What the keys of slices begin with, and no others."""


def slice_key(name: bytes, extents: Slice) -> bytes:
    """The key of a slice of the tensor ``name``."""
    escaped = name.replace(NUL, b"\0\xff")
    numbers = b"".join(map(_signed, (value for extent in extents for value in extent)))
    return _unsigned(0) + escaped + b"\0\1" + _unsigned(len(extents)) + numbers


def owner_of(key: bytes) -> bytes:
    """The name of the tensor that a slice is of."""
    return key[1 : key.find(b"\0\1", 1)].replace(b"\0\xff", NUL)


def _unsigned(value: int) -> bytes:
    size = -(-value.bit_length() // 8)
    return bytes([size]) + value.to_bytes(size, "big")


def _signed(value: int) -> bytes:
    size = 1
    while not -(1 << 7 * size - 1) <= value < 1 << 7 * size - 1:
        size += 1
    # As many bits as there are bytes say how many, and the sign.
    header = (1 << size) - 1 << 7 * size
    return (value % (1 << 8 * size) ^ header).to_bytes(size, "big")


def slices_of(
    entries: Mapping[bytes, Entry], name: bytes, entry: Entry
) -> list[tuple[Shape, bytes, Entry]]:
    """Start, key and entry of each slice of a tensor, ascending. ValueError unless they tile
    it."""
    found: list[tuple[Shape, bytes, Entry]] = []
    for extents in entry.slices:
        if len(extents) != len(entry.shape):
            raise ValueError("a slice has other dimensions than its tensor")
        start = tuple(first for first, _ in extents)
        sizes = zip((length for _, length in extents), entry.shape, strict=True)
        shape = tuple(size if length < 0 else length for length, size in sizes)
        key = slice_key(name, extents)
        part = entries.get(key)
        if part is None or part.slices or (part.number, part.shape) != (entry.number, shape):
            raise ValueError("a slice is missing, or of another kind than its tensor")
        found.append((start, key, part))
    found.sort(key=itemgetter(0, 1))
    wrong = fault(entry.shape, [(start, part.shape) for start, _, part in found])
    if wrong is not None:
        raise ValueError(f"its slices do not tile it: {wrong}")
    return found
