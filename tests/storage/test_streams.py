"""A stream takes bytes from many threads and lets them leave in order, with what lies between."""

from __future__ import annotations

import fcntl
import os
import random
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from swavg.errors import InputError, OutputError
from swavg.storage.streams import Pipe, StreamSink, open_stream

REGIONS = [b"first region", b"", b"x" * 300_000, b"last"]


@dataclass
class Archive:
    """Regions, each behind a header and before its CRC-32, and a directory of all CRCs."""

    regions: list[bytes]
    size: int = 0
    starts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for data in self.regions:
            self.starts.append(self.size + 4)
            self.size += 4 + len(data) + 4
        self.end = self.size
        self.size += 4 * len(self.regions) + 3

    def fixed(self) -> Iterator[tuple[int, bytes]]:
        for start in self.starts:
            yield start - 4, b"HEAD"
        yield self.size - 3, b"END"

    def deferred(self, crc: Callable[[int], int]) -> Iterator[tuple[int, Callable[[], bytes]]]:
        for start, data in zip(self.starts, self.regions, strict=True):
            yield start + len(data), lambda start=start: struct.pack("<I", crc(start))
        yield (
            self.end,
            lambda: struct.pack(f"<{len(self.starts)}I", *map(crc, self.starts)),
        )

    def bytes(self) -> bytes:
        crcs = [struct.pack("<I", zlib.crc32(data)) for data in self.regions]
        whole = [b"HEAD" + data + crc for data, crc in zip(self.regions, crcs, strict=True)]
        return b"".join([*whole, *crcs, b"END"])

    def chunks(self, size: int) -> list[tuple[int, bytes]]:
        return [
            (start + at, data[at : at + size])
            for start, data in zip(self.starts, self.regions, strict=True)
            for at in range(0, len(data), size)
        ]


@dataclass
class Plain:
    """A header, and regions one behind the other."""

    size: int

    def fixed(self) -> Iterator[tuple[int, bytes]]:
        yield 0, b"head"

    def deferred(self, _: Callable[[int], int]) -> Iterator[tuple[int, Callable[[], bytes]]]:
        return iter(())


class Reader(threading.Thread):
    """Reads all that comes out of a pipe."""

    def __init__(self, fd: int) -> None:
        super().__init__(daemon=True)
        self.fd, self.data = fd, b""
        self.start()

    def run(self) -> None:
        while data := os.read(self.fd, 1 << 16):
            self.data += data
        os.close(self.fd)

    def all(self) -> bytes:
        self.join(20)
        assert not self.is_alive()
        return self.data


@pytest.fixture
def pipe(tmp_path: Path) -> str:
    os.mkfifo(tmp_path / "pipe")
    return str(tmp_path / "pipe")


def reading(path: str) -> Reader:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(fd, True)
    return Reader(fd)


def in_threads(count: int, work: Callable[[int], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, args=(at,), daemon=True) for at in range(count)]
    for thread in threads:
        thread.start()
    return threads


def joined(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("chunk", [1000, 1 << 20])
def test_bytes_leave_in_order_whoever_brings_them(pipe: str, threads: int, chunk: int) -> None:
    archive = Archive(REGIONS)
    chunks = iter(archive.chunks(chunk))
    lock = threading.Lock()

    # The reader opens first: otherwise opening for writing would wait for it.
    fd = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with open_stream(pipe, archive, archive.starts) as sink:
        os.set_blocking(fd, True)
        reader = Reader(fd)
        assert not sink.forks

        def work(number: int) -> None:
            delays = random.Random(number)
            while True:
                with lock:
                    offset, data = next(chunks, (0, b""))
                if not data:
                    return
                time.sleep(delays.random() / 1000)
                sink.pwrite(offset, memoryview(data))

        joined(in_threads(threads, work))
    assert reader.all() == archive.bytes()


def test_a_write_may_span_regions_that_follow_each_other(tmp_path: Path) -> None:
    class Two(Plain):
        def deferred(self, crc: Callable[[int], int]) -> Iterator[tuple[int, Callable[[], bytes]]]:
            yield 10, lambda: struct.pack("<2I", crc(4), crc(7))

    with (tmp_path / "out").open("wb") as file:
        sink = StreamSink(Pipe(file.fileno(), "out"), Two(18), [4, 7])
        sink.pwrite(4, b"ab")
        sink.pwrite(6, b"cdef")
        sink.finish()
    crcs = struct.pack("<2I", zlib.crc32(b"abc"), zlib.crc32(b"def"))
    assert (tmp_path / "out").read_bytes() == b"headabcdef" + crcs


def test_a_layout_without_regions_is_written_at_once(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        StreamSink(Pipe(file.fileno(), "out"), Plain(4)).finish()
    assert (tmp_path / "out").read_bytes() == b"head"


def test_missing_and_repeated_bytes_are_noticed(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        sink = StreamSink(Pipe(file.fileno(), "out"), Plain(8))
        sink.pwrite(4, b"ab")
        with pytest.raises(AssertionError, match="6 bytes written, 8 planned"):
            sink.finish()
        with pytest.raises(AssertionError, match="byte 4 was written"):
            sink.pwrite(4, b"ab")


def test_a_failure_wakes_all_who_wait_and_ends_later_calls(tmp_path: Path) -> None:
    errors: list[BaseException] = []
    with (tmp_path / "out").open("wb") as file:
        sink = StreamSink(Pipe(file.fileno(), "out"), Plain(100))

        def work(number: int) -> None:
            try:
                sink.pwrite(10 + number, b"x")
            except InputError as error:
                errors.append(error)

        threads = in_threads(5, work)
        time.sleep(0.05)
        first = InputError("a", "read error")
        sink.fail(first)
        sink.fail(InputError("b", "too late"))
        joined(threads)
        assert errors == [first] * 5
        for call in (lambda: sink.pwrite(4, b"x"), sink.finish):
            with pytest.raises(InputError, match="a: read error"):
                call()


def test_a_reader_that_goes_away_ends_all(pipe: str) -> None:
    fd = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    problems = []

    def stream() -> None:
        with open_stream(pipe, Plain(10_000_000)) as sink:
            os.close(fd)

            def work(number: int) -> None:
                try:
                    sink.pwrite(4 + number * 1000, bytes(1000))
                except OutputError as error:
                    problems.append(str(error))

            joined(in_threads(3, work))

    with pytest.raises(OutputError, match="its reader went away") as caught:
        stream()
    assert caught.value.exit_code == 5
    assert problems == [f"{pipe}: cannot be written: its reader went away"] * 3


def test_a_reader_that_pauses_does_not_hold_up_a_failure(pipe: str) -> None:
    fd = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    problems: list[str] = []

    def stream() -> None:
        with open_stream(pipe, Plain(10_000_004)) as sink:

            def work(_: int) -> None:
                try:
                    sink.pwrite(4, bytes(10_000_000))
                except InputError as error:
                    problems.append(str(error))

            threads = in_threads(1, work)
            time.sleep(0.1)
            error = InputError("a", "read error")
            sink.fail(error)
            joined(threads)
            raise error

    with pytest.raises(InputError, match="a: read error"):
        stream()
    assert problems == ["a: read error"]
    os.close(fd)


def test_a_full_pipe_that_does_not_wait_is_waited_for() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    sink = StreamSink(Pipe(write, "standard output"), Plain(1_000_004))
    threads = in_threads(1, lambda _: sink.pwrite(4, b"y" * 1_000_000))
    time.sleep(0.05)
    reader = Reader(read)
    joined(threads)
    sink.finish()
    os.close(write)
    assert reader.all() == b"head" + b"y" * 1_000_000


def test_standard_output_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting that a write does not wait is shared with the shell."""
    read, write = os.pipe()
    reader = Reader(read)
    with os.fdopen(write, "wb") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        with open_stream(None, Plain(6)) as sink:
            sink.pwrite(4, b"xy")
        assert os.get_blocking(write)
        fcntl.fcntl(write, fcntl.F_GETFD)
    assert reader.all() == b"headxy"


def test_a_full_device_is_an_output_error() -> None:
    with (
        pytest.raises(OutputError, match="/dev/full: cannot be written: the disk is full"),
        open_stream("/dev/full", Plain(4)),
    ):
        pass


def test_a_stream_that_is_gone_is_an_output_error(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="cannot be written: No such file"),
        open_stream(str(tmp_path / "gone"), Plain(4)),
    ):
        pass
