"""Reading from many sources with few of them open, and a part of one as a file of its own."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from swavg.errors import InputError
from swavg.storage.sources import Reader, Source


class Expected(Protocol):
    """What is being fetched of sources."""

    def read_into(self, source: Source, offset: int, out: memoryview) -> bool:
        """Fill ``out``; False if that was not expected."""
        ...


class Pool:
    """Reads from many sources with few of them open; safe to share between threads.

    At most ``limit`` idle ones stay open (least recently used are closed first); one more per
    thread may be open while it is read. A context manager that closes all.
    """

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._idle: OrderedDict[Source, list[Reader]] = OrderedDict()
        self._open = 0
        self.expected: Expected | None = None
        """What is being fetched for the one thread that reads from the pool: of this it is read,
        where it can be."""

    @contextmanager
    def reader(self, source: Source) -> Iterator[Reader]:
        """The open source, for many reads in a row."""
        reader = self._take(source)
        try:
            yield reader
        finally:
            self._give(source, reader)

    def read_into(self, source: Source, offset: int, out: memoryview) -> None:
        """Fill ``out`` with the bytes at ``offset``; InputError if they are not there."""
        if self.expected is not None and self.expected.read_into(source, offset, out):
            return
        reader = self._take(source)
        try:
            reader.read_into(offset, out)
        finally:
            self._give(source, reader)

    def read(self, source: Source, offset: int, size: int) -> bytearray:
        """The ``size`` bytes at ``offset``."""
        data = bytearray(size)
        self.read_into(source, offset, memoryview(data))
        return data

    def _take(self, source: Source) -> Reader:
        with self._lock:
            readers = self._idle.get(source)
            if readers:
                reader = readers.pop()
                if not readers:
                    del self._idle[source]
                return reader
            self._trim(self._limit - 1)
        try:
            reader = source.open()
        except OSError:
            # Too many files are open: without the idle ones there may be room.
            self.close()
            try:
                reader = source.open()
            except OSError as error:
                raise InputError(source.name, f"cannot be read: {error.strerror}") from None
        with self._lock:
            self._open += 1
        return reader

    def _give(self, source: Source, reader: Reader) -> None:
        with self._lock:
            self._idle.setdefault(source, []).append(reader)
            self._idle.move_to_end(source)
            self._trim(self._limit)

    def _trim(self, limit: int) -> None:
        while self._open > limit and self._idle:
            source, readers = next(iter(self._idle.items()))
            readers.pop(0).close()
            self._open -= 1
            if not readers:
                del self._idle[source]

    def close(self) -> None:
        """Close what is idle; the pool stays usable."""
        with self._lock:
            self._trim(0)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Window(io.RawIOBase):
    """``size`` bytes of an open source from ``start`` on, as a file of their own."""

    def __init__(self, reader: Reader, start: int, size: int) -> None:
        super().__init__()
        self._reader, self._start, self._size, self._at = reader, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self.end)[whence]
        return self._at

    @property
    def end(self) -> int:
        """How many bytes it has."""
        return self._size

    def readinto(self, out: memoryview) -> int:  # type: ignore[override]
        count = max(0, min(len(out), self._size - self._at))
        self._reader.read_into(self._start + self._at, memoryview(out)[:count])
        self._at += count
        return count
