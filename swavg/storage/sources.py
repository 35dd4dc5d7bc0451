"""Where bytes come from: values that each process opens for itself, and reads a range at a time."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
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


def _in_memory(name: str, data: bytes) -> Memory:
    return Memory(name, memoryview(data))
