"""Input files: what they were when they were opened, and reading from many with few open."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from swavg.errors import InputError


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file as it was when it was opened, so that a change under us is noticed."""

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    def __hash__(self) -> int:
        # Looked up with every read; a string remembers its hash.
        return hash(self.path)

    @classmethod
    def identify(cls, path: str, fd: int | None = None) -> InputFile:
        """Facts of ``path`` (or of the open ``fd``); InputError unless it is a regular file."""
        try:
            facts = os.stat(path) if fd is None else os.fstat(fd)
        except FileNotFoundError:
            problem = "no such file" if path else "an empty path names no file"
            raise InputError(path, problem) from None
        except ValueError:
            raise InputError(
                path.replace("\0", "\\0"),
                "no file has a NUL byte in its name",
                hint="For paths that are separated by NUL, use --null.",
            ) from None
        except OSError as error:
            raise InputError(path, f"cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(facts.st_mode):
            raise InputError(
                path,
                "not a regular file",
                hint="swavg reads each input at several places at once; write it to a file first.",
            )
        return cls(
            path, facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
        )

    def check(self, fd: int | None = None) -> None:
        """Raise InputError if the file is no longer what was opened."""
        if InputFile.identify(self.path, fd) != self:
            raise InputError(
                self.path,
                "changed while it was read",
                hint="Is a training run still writing it? Wait for it to finish, or copy it first.",
            )


@contextmanager
def open_input(path: str) -> Iterator[tuple[int, InputFile]]:
    """Open ``path`` for reading: its descriptor and its identity. Raises InputError."""
    # Opening a FIFO would wait for a writer: look first.
    InputFile.identify(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from None
    try:
        yield fd, InputFile.identify(path, fd)
    finally:
        os.close(fd)


def read_exactly(fd: int, file: InputFile, offset: int, size: int) -> bytearray:
    """``size`` bytes at ``offset``; InputError if the file ends before."""
    data = bytearray(size)
    _fill(fd, file, offset, memoryview(data))
    return data


def _fill(fd: int, file: InputFile, offset: int, target: memoryview) -> None:
    done, size = 0, len(target)
    while done < size:
        try:
            count = os.preadv(fd, [target[done:]], offset + done)
        except OSError as error:
            raise InputError(file.path, f"read error: {error.strerror}") from None
        if count == 0:
            raise InputError(
                file.path,
                f"ends at byte {offset + done}, {size - done} bytes short of its data:"
                " it was cut short while it was read",
            )
        done += count


class FilePool:
    """Reads from many files with few open descriptors; safe to share between threads.

    At most ``limit`` idle files stay open (least recently used are closed first); one more per
    thread may be open while it is read.
    """

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._idle: OrderedDict[InputFile, list[int]] = OrderedDict()
        self._open = 0

    def _take(self, file: InputFile) -> int:
        with self._lock:
            fds = self._idle.get(file)
            if fds:
                fd = fds.pop()
                if not fds:
                    del self._idle[file]
                return fd
        return self._opened(file)

    def _give(self, file: InputFile, fd: int) -> None:
        with self._lock:
            self._idle.setdefault(file, []).append(fd)
            self._idle.move_to_end(file)
            self._trim(self._limit)

    def _opened(self, file: InputFile) -> int:
        with self._lock:
            self._trim(self._limit - 1)
        for attempt in (1, 2):
            try:
                fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
                break
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE) and attempt == 1:
                    self.close()
                    continue
                raise InputError(file.path, f"cannot be read: {error.strerror}") from None
        try:
            file.check(fd)
        except BaseException:
            os.close(fd)
            raise
        with self._lock:
            self._open += 1
        return fd

    def _trim(self, limit: int) -> None:
        while self._open > limit and self._idle:
            file, fds = next(iter(self._idle.items()))
            os.close(fds.pop(0))
            self._open -= 1
            if not fds:
                del self._idle[file]

    def read_into(self, file: InputFile, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the bytes at ``offset``; InputError if they are not there."""
        fd = self._take(file)
        try:
            _fill(fd, file, offset, target)
        finally:
            self._give(file, fd)

    def read(self, file: InputFile, offset: int, size: int) -> bytearray:
        """The ``size`` bytes at ``offset``."""
        data = bytearray(size)
        self.read_into(file, offset, memoryview(data))
        return data

    def close(self) -> None:
        """Close the idle files; the pool stays usable."""
        with self._lock:
            self._trim(0)

    def __enter__(self) -> FilePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
