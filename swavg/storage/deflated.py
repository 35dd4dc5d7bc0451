"""Bytes that lie deflated in a file: unpacked from their beginning, as far as they are wanted."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from swavg.errors import InputError
from swavg.storage.sources import InFile, Reader

_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Deflated(InFile):
    """``size`` bytes of ``file`` that lie deflated in the ``packed`` ones at ``offset``. Their
    CRC-32 is compared when all were read."""

    offset: int
    packed: int
    size: int
    crc: int

    def __hash__(self) -> int:
        return hash((self.file.name, self.offset))

    @property
    def identity(self) -> tuple[object, ...]:
        return (*self.file.identity, self.offset)

    def open(self) -> Inflater:
        return Inflater(self, self.file.open())


class Inflater:
    """Reads a deflated source; by one thread at a time. What lies before what was read last is
    unpacked from the beginning again."""

    def __init__(self, source: Deflated, reader: Reader) -> None:
        self._source, self._reader = source, reader
        self._begin()

    def _begin(self) -> None:
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._at = self._fed = self._crc = 0
        self._waiting = b""

    def read_into(self, offset: int, out: memoryview) -> None:
        if offset < self._at:
            self._begin()
        while self._at < offset:
            self._next(offset - self._at)
        done = 0
        while done < len(out):
            data = self._next(len(out) - done)
            out[done : done + len(data)] = data
            done += len(data)

    def _next(self, most: int) -> bytes:
        """The bytes that follow: at least one."""
        source, data = self._source, b""
        while not data:
            if not self._waiting and self._fed < source.packed:
                chunk = bytearray(min(_CHUNK, source.packed - self._fed))
                self._reader.read_into(source.offset + self._fed, memoryview(chunk))
                self._fed += len(chunk)
                self._waiting = bytes(chunk)
            last = not self._waiting
            try:
                # Without new input, what it has left to give.
                data = self._inflate.decompress(self._waiting, min(most, _CHUNK))
            except zlib.error as error:
                raise InputError(source.name, f"is damaged: {error}") from None
            if not data and (last or self._inflate.eof):
                raise InputError(source.name, "is damaged: what is deflated in it ends too early")
            self._waiting = self._inflate.unconsumed_tail
        self._at += len(data)
        self._crc = zlib.crc32(data, self._crc)
        if self._at == source.size and self._crc != source.crc:
            raise InputError(
                source.name, "is damaged: what is deflated in it does not have its CRC-32"
            )
        return data

    def close(self) -> None:
        self._reader.close()
