"""Where bytes go: what takes the bytes of a file, and files themselves."""

from __future__ import annotations

import errno
import os
import resource
from contextlib import suppress
from typing import Protocol

from swavg.errors import OutputError, ReaderGoneError
from swavg.storage.filesystems import fsync

STDOUT = "standard output"
"""The name of that in messages."""

_OTHER_FILES = 512
"""Inputs, pipes between processes, and what else a process has open."""

Buffer = bytes | bytearray | memoryview
"""Bytes: a memoryview has items of one byte."""


def allow_open(files: int) -> None:
    """Let this process have so many more files open at once, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files + _OTHER_FILES
    if soft not in (resource.RLIM_INFINITY, hard) and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


class Sink(Protocol):
    """Takes the bytes of one file, from several threads at once.

    ``forks``: it may be written to in a process that was forked, where it needs the descriptors
    ``fds``.
    """

    @property
    def forks(self) -> bool: ...
    @property
    def fds(self) -> tuple[int, ...]: ...

    def pwrite(self, offset: int, data: Buffer) -> None:
        """Write all of ``data`` at ``offset``, or raise OutputError."""
        ...

    def sync(self) -> None:
        """Force the bytes to the disk; OutputError if it reports a failure."""
        ...

    def fail(self, error: BaseException) -> None:
        """Whoever waits in :meth:`pwrite`, or calls it later, gets this error."""
        ...


def write_error(shown: str, error: OSError) -> OutputError:
    """What a failed write, sync, close or rename means to the user."""
    if error.errno == errno.ENOSPC:
        return OutputError(shown, "cannot be written: the disk is full")
    if error.errno == errno.EPIPE:
        kind = ReaderGoneError if shown == STDOUT else OutputError
        return kind(shown, "cannot be written: its reader went away")
    return OutputError(shown, f"cannot be written: {error.strerror}")


def sync(fd: int, shown: str) -> None:
    """Force what was written to the disk. OutputError if it reports a failure."""
    try:
        fsync(fd)
    except OSError as error:
        raise write_error(shown, error) from None


class FileSink:
    """An open file at ``path``; errors name ``shown``. Pickled, it is a :class:`SharedFile`."""

    forks = True

    def __init__(self, path: str, fd: int | None, shown: str) -> None:
        self.path = path
        self._fd = fd
        self.shown = shown

    @property
    def fd(self) -> int:
        assert self._fd is not None, f"{self.path} is closed"
        return self._fd

    def pwrite(self, offset: int, data: Buffer) -> None:
        view, fd = memoryview(data), self.fd
        while view:
            try:
                count = os.pwrite(fd, view, offset)
            except OSError as error:
                raise write_error(self.shown, error) from None
            offset += count
            view = view[count:]

    @property
    def fds(self) -> tuple[int, ...]:
        return (self.fd,)

    def sync(self) -> None:
        sync(self.fd, self.shown)

    def fail(self, error: BaseException) -> None:
        """Nobody waits for a file."""

    def close(self) -> None:
        """Nothing if it is closed. OutputError if a late write fails."""
        fd, self._fd = self._fd, None
        if fd is not None:
            try:
                os.close(fd)
            except OSError as error:
                raise write_error(self.shown, error) from None

    def hand_over(self) -> None:
        """Other machines write into it from now on: what was written is on the disk, and this one
        remembers nothing of it. OutputError."""
        self.sync()
        with suppress(OSError):
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def __reduce__(self) -> tuple[type[SharedFile], tuple[str, str]]:
        return SharedFile, (os.path.abspath(self.path), self.shown)


class SharedFile(FileSink):
    """The file of another process, perhaps on another machine: it is there, opened with the first
    write, and again after :meth:`close`."""

    def __init__(self, path: str, shown: str) -> None:
        super().__init__(path, None, shown)

    @property
    def fd(self) -> int:
        if self._fd is None:
            try:
                # Never made: what is not there is another folder.
                self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                raise write_error(self.shown, error) from None
        return self._fd

    def settle(self) -> None:
        """What was written is on the disk: others see it. OutputError."""
        if self._fd is not None:
            self.sync()
            self.close()
