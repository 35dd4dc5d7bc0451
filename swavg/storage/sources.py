"""Where bytes come from: values that each process opens for itself, and reads a range at a time."""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from swavg.errors import ChangedError, InputError


class Reader(Protocol):
    """An open source; any number of threads may read at once."""

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill ``out`` with the bytes at ``offset``. InputError: cut short, or a read error."""
        ...

    def close(self) -> None: ...


class Source(Protocol):
    """Bytes that were there when it was made: a picklable, hashable value.

    ``name`` is shown to people. ``size`` counts bytes. ``forks``: it may be opened in a process
    that was forked. ``identity`` tells, within a run, whether two sources are the same bytes;
    ``version`` on other machines and days, with name and size, whether one is still the same.
    """

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def forks(self) -> bool: ...
    @property
    def identity(self) -> tuple[object, ...]: ...
    @property
    def version(self) -> int | str: ...

    def open(self) -> Reader:
        """InputError if it is gone, or no longer what it was."""
        ...

    def check(self) -> None:
        """InputError if it is no longer what it was."""
        ...


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A regular file as it was when it was found: ``stamp`` is device, inode, size and time of
    change of the content, ``touched`` the time of any change, ``about`` mode, owner, group and
    number of links."""

    name: str
    stamp: tuple[int, int, int, int]
    touched: int
    about: tuple[int, int, int, int]

    forks = True

    @classmethod
    def find(cls, path: str) -> LocalFile:
        """The file at ``path``. InputError unless it is a regular file that can be looked at."""
        try:
            return cls._of(path, os.stat(path))
        except FileNotFoundError:
            problem = "no such file" if path else "an empty path names no file"
            raise InputError(path, problem, absent=True) from None
        except ValueError:
            raise InputError(
                path.replace("\0", "\\0"),
                "no file has a NUL byte in its name",
                hint="For paths that are separated by NUL, use null=True.",
            ) from None
        except OSError as error:
            raise InputError(path, f"cannot be read: {error.strerror}") from None

    @classmethod
    def _of(cls, path: str, facts: os.stat_result) -> LocalFile:
        if not stat.S_ISREG(facts.st_mode):
            raise InputError(
                path,
                "not a regular file",
                hint="swavg reads each input at several places at once; write it to a file first.",
            )
        return cls(
            path,
            (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns),
            facts.st_ctime_ns,
            (facts.st_mode, facts.st_uid, facts.st_gid, facts.st_nlink),
        )

    def __hash__(self) -> int:
        # Looked up with every read; a string remembers its hash.
        return hash(self.name)

    @property
    def size(self) -> int:
        return self.stamp[2]

    @property
    def identity(self) -> tuple[int, int]:
        return self.stamp[:2]

    @property
    def version(self) -> int:
        """The time of change of the content, in nanoseconds."""
        return self.stamp[3]

    def open(self) -> OpenFile:
        try:
            # Without waiting: what was a file may have become a FIFO.
            fd = os.open(self.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            raise InputError(self.name, f"cannot be read: {error.strerror}") from None
        opened = OpenFile(self.name, fd)
        try:
            self._compare(LocalFile._of(self.name, os.fstat(fd)))
        except BaseException:
            opened.close()
            raise
        return opened

    def check(self) -> None:
        self._compare(LocalFile.find(self.name))

    def _compare(self, now: LocalFile) -> None:
        # A link, a mode or an owner that changes meanwhile touches the file and not its content.
        untouched = now.touched == self.touched or now.about != self.about
        # Another machine has another number for the device, and some systems for the file.
        known = 0 if now.stamp[0] == self.stamp[0] else 2
        if now.stamp[known:] != self.stamp[known:] or not untouched:
            raise ChangedError(self.name)


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file open for reading."""

    name: str
    fd: int

    def read_into(self, offset: int, out: memoryview) -> None:
        done, size = 0, len(out)
        while done < size:
            try:
                count = os.preadv(self.fd, [out[done:] if done else out], offset + done)
            except OSError as error:
                raise InputError(self.name, f"read error: {error.strerror}") from None
            if count == 0:
                raise InputError(
                    self.name,
                    f"ends at byte {offset + done}, {size - done} bytes short of its data:"
                    " it was cut short while it was read",
                )
            done += count

    def close(self) -> None:
        # Nothing that was read is lost if this fails.
        with suppress(OSError):
            os.close(self.fd)


@dataclass(frozen=True, slots=True)
class InFile:
    """What sources have in common that read a ``file`` in a way of their own: it is the file that
    may change, and that messages name."""

    file: Source

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def version(self) -> int | str:
        return self.file.version

    @property
    def forks(self) -> bool:
        return self.file.forks

    def check(self) -> None:
        self.file.check()


@dataclass(frozen=True, eq=False)
class Memory:
    """Bytes of this process (and of those forked from it)."""

    name: str
    data: memoryview = field(repr=False)

    forks = True

    @property
    def size(self) -> int:
        return self.data.nbytes

    @property
    def identity(self) -> tuple[object, ...]:
        return ("memory", id(self.data))

    version = 0

    def open(self) -> Memory:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return _in_memory, (self.name, bytes(self.data))

    def check(self) -> None:
        """Nobody else can change it."""

    def read_into(self, offset: int, out: memoryview) -> None:
        out[:] = self.data[offset : offset + len(out)]

    def close(self) -> None:
        """There is nothing to give back."""


class Expected(Protocol):
    """What is being fetched of sources."""

    def read_into(self, source: Source, offset: int, out: memoryview) -> bool:
        """Fill ``out``; False if that was not expected."""
        ...


def _in_memory(name: str, data: bytes) -> Memory:
    return Memory(name, memoryview(data))


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
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, out: memoryview) -> int:  # type: ignore[override]
        count = max(0, min(len(out), self._size - self._at))
        self._reader.read_into(self._start + self._at, memoryview(out)[:count])
        self._at += count
        return count
