"""The index of a bundle: a table of sorted keys in blocks, as LevelDB has them, with checksums."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from swavg.errors import InputError
from swavg.formats.tensorflow import MAGIC
from swavg.formats.tensorflow.proto import as_varint, varint
from swavg.storage.crc import crc_function

LIMIT = 100_000_000
"""Bytes of an index at most, and of all its keys, which may share their beginnings."""
ENTRY_LIMIT = 400_000
"""Entries at most: of a hundred thousand tensors with two slots each, say."""
KEY_LIMIT = 8192
"""Bytes of a key at most."""

_FOOTER, _TRAILER = 48, 5
_BLOCK = 4096
"""Bytes of a block from which on another one begins."""
_RESTART = 16
"""Entries from one whole key to the next."""


def masked(crc: int) -> int:
    """A checksum as it is stored: LevelDB masks it, as one of checksums would be weak."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def unmasked(stored: int) -> int:
    turned = (stored - 0xA282EAD8) & 0xFFFFFFFF
    return (turned >> 17 | turned << 15) & 0xFFFFFFFF


def entries(path: str, data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of all entries, keys ascending. InputError for anything that is not exactly
    so, or that a checksum denies."""
    try:
        yield from _entries(data)
    except ValueError as error:
        raise InputError(path, f"is no index of a TensorFlow checkpoint: {error}") from None


def _entries(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(data) < _FOOTER or not data.endswith(MAGIC):
        raise ValueError("it does not end as one does (was it cut short?)")
    end = len(data) - _FOOTER
    at = end
    handles = []
    for _ in range(2):
        start, at = varint(data, at)
        size, at = varint(data, at)
        handles.append((start, size))
    (meta, meta_size), (index, index_size) = handles
    _block(data, meta, meta_size)
    if meta + meta_size + _TRAILER != index or index + index_size + _TRAILER != end:
        raise ValueError("its blocks leave a hole")
    before, position, count, total = b"", 0, 0, 0
    for _, handle in _pairs(_block(data, index, index_size)):
        start, at = varint(handle, 0)
        size, at = varint(handle, at)
        if start != position:
            raise ValueError("its blocks leave a hole, or overlap")
        position = start + size + _TRAILER
        for key, value in _pairs(_block(data, start, size)):
            count += 1
            total += len(key)
            if count > ENTRY_LIMIT:
                raise ValueError(f"it has more than {ENTRY_LIMIT:,} entries")
            if total > LIMIT:
                raise ValueError(f"its keys take more than {LIMIT:,} bytes")
            if key <= before and count > 1:
                raise ValueError("its keys are not in order")
            before = key
            yield key, value
    if position != meta:
        raise ValueError("its blocks leave a hole")


def _block(data: bytes, start: int, size: int) -> bytes:
    """The entries of a block, whose checksum is compared."""
    end = start + size
    if end + _TRAILER > len(data) or size < 4:
        raise ValueError("a block lies outside of it")
    kind, stored = struct.unpack_from("<BI", data, end)
    if masked(crc_function("crc32c")(data[start : end + 1])) != stored:
        raise ValueError("a block does not have its CRC-32C")
    if kind != 0:
        raise ValueError("it is compressed, which TensorFlow does not do")
    (restarts,) = struct.unpack_from("<I", data, end - 4)
    stop = end - 4 - 4 * restarts
    if stop < start:
        raise ValueError("a block is too short")
    return data[start:stop]


def _pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    at, key, size = 0, b"", len(block)
    while at < size:
        head = block[at : at + 3]
        if len(head) == 3 and max(head) < 0x80:
            shared, unshared, length = head
            at += 3
        else:
            shared, at = varint(block, at)
            unshared, at = varint(block, at)
            length, at = varint(block, at)
        if shared > len(key) or at + unshared + length > size or shared + unshared > KEY_LIMIT:
            raise ValueError("an entry is cut short")
        key = key[:shared] + block[at : at + unshared]
        at += unshared + length
        yield key, block[at - length : at]


def table(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The file of these entries, keys ascending."""
    out, handles = bytearray(), []
    block = _Block(_RESTART)
    for key, value in pairs:
        block.add(key, value)
        if len(block.data) >= _BLOCK:
            handles.append((key, _put(out, block)))
            block = _Block(_RESTART)
    if block.data:
        handles.append((block.last, _put(out, block)))
    meta = _put(out, _Block(_RESTART))
    index = _Block(1)
    for key, handle in handles:
        index.add(key, handle)
    footer = meta + _put(out, index)
    return bytes(out) + footer.ljust(_FOOTER - 8, b"\0") + MAGIC


class _Block:
    """Entries, of whose keys every ``restart``-th is whole."""

    def __init__(self, restart: int) -> None:
        self.data = bytearray()
        self.last = b""
        self._restart, self._count = restart, 0
        self._restarts = [0]

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self._count % self._restart:
            most = min(len(key), len(self.last))
            while shared < most and key[shared] == self.last[shared]:
                shared += 1
        elif self._count:
            self._restarts.append(len(self.data))
        numbers = (shared, len(key) - shared, len(value))
        self.data += b"".join(map(as_varint, numbers)) + key[shared:] + value
        self.last = key
        self._count += 1

    def whole(self) -> bytes:
        count = len(self._restarts)
        return bytes(self.data) + struct.pack(f"<{count + 1}I", *self._restarts, count)


def _put(out: bytearray, block: _Block) -> bytes:
    """Append a block with its trailer; what tells of it: offset and size."""
    data = block.whole()
    start = len(out)
    kept = data + b"\0"
    out += kept + struct.pack("<I", masked(crc_function("crc32c")(kept)))
    return as_varint(start) + as_varint(len(data))
