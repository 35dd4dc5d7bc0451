"""Streams, whose bytes leave in order however many threads compute them."""

from __future__ import annotations

import fcntl
import heapq
import os
import select
import stat
import sys
import threading
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from operator import itemgetter
from typing import Protocol

from swavg.storage.crc import RegionChecksum
from swavg.storage.sinks import STDOUT, Buffer, write_error


class FileLayout(Protocol):
    """What a stream must know of a file: the bytes between regions, each ascending by offset.

    ``crc(offset)`` is the CRC-32 of the region that begins there; it has passed when the bytes
    that depend on it are made.
    """

    @property
    def size(self) -> int: ...

    def fixed(self) -> Iterator[tuple[int, bytes]]: ...
    def deferred(self, crc: RegionChecksum) -> Iterator[tuple[int, Callable[[], bytes]]]: ...


class Writer(Protocol):
    """Takes bytes in order."""

    def write(self, data: Buffer, stop: Callable[[], None]) -> None:
        """Write all of ``data``, which is the caller's again afterwards, or raise OutputError.
        ``stop`` is called while it waits: what that raises ends the wait."""
        ...


class Pipe:
    """A stream open for writing, which may be full."""

    def __init__(self, fd: int, shown: str) -> None:
        self._fd, self._shown = fd, shown

    def write(self, data: Buffer, stop: Callable[[], None] = lambda: None) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                self._wait(stop)
            except OSError as error:
                raise write_error(self._shown, error) from None

    def _wait(self, stop: Callable[[], None]) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        while not poll.poll(100):
            stop()


class StreamSink:
    """A pipe, FIFO, device, standard output or an object: bytes leave in ascending order.

    :meth:`pwrite` waits until everything before has left. What the layout has between regions is
    written here, as soon as it is its turn. ``regions`` are where those begin whose CRC-32 the
    layout asks for, ascending; one ends where the next begins, or bytes of the layout.
    """

    forks = False
    fds = ()

    def __init__(self, writer: Writer, layout: FileLayout, regions: Sequence[int] = ()) -> None:
        self._writer, self._size, self._regions = writer, layout.size, regions
        self._turn = threading.Condition()
        self._begun = False
        # Only who has its turn touches what follows; the others look at _next.
        self._error: BaseException | None = None
        self._position = 0
        self._crcs = array("I", [0]) * len(regions)
        self._region: int | None = None
        fixed = ((offset, partial(bytes, data)) for offset, data in layout.fixed())
        self._between: Iterator[tuple[int, Callable[[], bytes]]] = heapq.merge(
            fixed, layout.deferred(self._crc), key=itemgetter(0)
        )
        self._piece = next(self._between, None)
        self._next = -1

    def begin(self) -> None:
        """Write what precedes the first region, unless that was done."""
        with self._turn:
            self._check()
            first, self._begun = not self._begun, True
        if first:
            self._advance(memoryview(b""))

    def pwrite(self, offset: int, data: Buffer) -> None:
        """Write ``data`` when its turn has come. OutputError, or what :meth:`fail` was given."""
        view = memoryview(data)
        if not view:
            return
        self.begin()
        with self._turn:
            while self._next != offset:
                self._check()
                if self._next > offset:
                    raise AssertionError(f"byte {offset} was written, and {self._next} is next")
                self._turn.wait()
            self._check()
        self._advance(view)

    def _advance(self, view: memoryview) -> None:
        """Write, in one's turn, and what follows of the layout."""
        try:
            if self._crcs:
                self._add_checksums(view)
            self._writer.write(view, self._check)
            self._position += len(view)
            self._write_between()
        except BaseException as error:
            self.fail(error)
            raise
        with self._turn:
            self._next = self._position
            self._turn.notify_all()

    def fail(self, error: BaseException) -> None:
        """End all waits, and every later call, with the first ``error`` that was given."""
        with self._turn:
            if self._error is None:
                self._error = error
            self._turn.notify_all()

    def finish(self) -> None:
        """Raise what failed, or AssertionError if bytes are missing."""
        self._check()
        self.begin()
        if self._piece is not None or self._next != self._size:
            raise AssertionError(f"{self._next} bytes written, {self._size} planned")

    def sync(self) -> None:
        """What has left is with whoever takes it."""

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _write_between(self) -> None:
        while self._piece is not None and self._piece[0] <= self._position:
            offset, make = self._piece
            if offset < self._position:
                raise AssertionError(f"bytes of {offset} overlap those before {self._position}")
            data = make()
            self._writer.write(data, self._check)
            self._position += len(data)
            self._region = None
            self._piece = next(self._between, None)

    def _add_checksums(self, view: memoryview) -> None:
        regions, position = self._regions, self._position
        while view:
            after = bisect_right(regions, position)
            if after and regions[after - 1] == position:
                self._region = after - 1
            end = regions[after] - position if after < len(regions) else len(view)
            if self._region is not None:
                self._crcs[self._region] = zlib.crc32(view[:end], self._crcs[self._region])
            position += end
            view = view[end:]

    def _crc(self, offset: int, file: int | None = None) -> int:
        return self._crcs[bisect_right(self._regions, offset) - 1]


@contextmanager
def open_stream(
    path: str | None, layout: FileLayout, regions: Sequence[int] = ()
) -> Iterator[StreamSink]:
    """The stream at ``path`` (None: standard output), which has taken all of ``layout`` when the
    block ends well. If it does not, all waits for its turn end too."""
    with open_pipe(path) as (fd, shown):
        sink = StreamSink(Pipe(fd, shown), layout, regions)
        try:
            sink.begin()
            yield sink
            sink.finish()
        except BaseException as error:
            sink.fail(error)
            raise


@contextmanager
def open_pipe(path: str | None) -> Iterator[tuple[int, str]]:
    """A descriptor of the stream at ``path`` (None: standard output), and what it is called."""
    shown = STDOUT if path is None else path
    try:
        fd = os.dup(sys.stdout.fileno()) if path is None else os.open(path, os.O_WRONLY)
    except OSError as error:
        raise write_error(shown, error) from None
    try:
        fd = _unblocked(fd)
        yield fd, shown
    except BaseException:
        with suppress(OSError):
            os.close(fd)
        raise
    try:
        os.close(fd)
    except OSError as error:
        raise write_error(shown, error) from None


def _unblocked(fd: int) -> int:
    """For a pipe a descriptor that never waits, so that a full one holds up no failure. It is
    opened anew: the setting of one that came from elsewhere is shared with others."""
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return fd
    try:
        opened = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return fd
    os.close(fd)
    with suppress(OSError):
        # As much as an unprivileged user may have: fewer turns for whoever reads.
        fcntl.fcntl(opened, fcntl.F_SETPIPE_SZ, 1 << 20)
    return opened
