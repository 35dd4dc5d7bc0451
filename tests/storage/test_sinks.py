"""Files take bytes anywhere, in several processes; what fails is an OutputError."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from swavg.errors import OutputError
from swavg.storage.sinks import FileSink


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[FileSink]:
    path = str(tmp_path / "a.partial")
    sink = FileSink(path, os.open(path, os.O_RDWR | os.O_CREAT), "a")
    yield sink
    sink.close()


def test_bytes_may_come_in_any_order(sink: FileSink) -> None:
    sink.pwrite(4, b"four")
    sink.pwrite(8, memoryview(b"!"))
    sink.pwrite(0, bytearray(b"zero"))
    sink.pwrite(2, b"")
    sink.sync()
    assert Path(sink.path).read_bytes() == b"zerofour!"


def test_a_forked_process_writes_too(sink: FileSink) -> None:
    assert sink.forks
    child = os.fork()
    if child == 0:
        sink.pwrite(3, b"child")
        os._exit(0)
    sink.pwrite(0, b"me ")
    assert os.waitpid(child, 0)[1] == 0
    assert Path(sink.path).read_bytes() == b"me child"


def test_short_writes_are_continued(sink: FileSink, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, bytes(data[:1]), at))
    sink.pwrite(0, b"byte by byte")
    assert Path(sink.path).read_bytes() == b"byte by byte"


@pytest.mark.parametrize(
    ("code", "problem"), [(errno.ENOSPC, "the disk is full"), (errno.EIO, "Input/output error")]
)
@pytest.mark.parametrize("call", ["pwrite", "fsync", "close"])
def test_a_failure_names_the_output(
    sink: FileSink, monkeypatch: pytest.MonkeyPatch, call: str, code: int, problem: str
) -> None:
    def failing(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(OutputError, match=f"^a: cannot be written: {problem}$"):
            {"pwrite": lambda: sink.pwrite(0, b"x"), "fsync": sink.sync, "close": sink.close}[
                call
            ]()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EROFS])
def test_what_cannot_be_synced_need_not_be(
    sink: FileSink, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def failing(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", failing)
    sink.sync()


def test_a_closed_file_may_be_closed_again(sink: FileSink) -> None:
    sink.close()
    sink.close()
    with pytest.raises(AssertionError, match="is closed"):
        sink.pwrite(0, b"x")


def test_another_process_opens_the_file_when_it_writes(sink: FileSink, tmp_path: Path) -> None:
    """Where it runs and which files it has does not matter."""
    script = (
        "import pickle, sys; sink = pickle.loads(sys.stdin.buffer.read());"
        " sink.pwrite(3, b'there'); sink.settle(); sink.pwrite(9, b'again'); sink.settle()"
    )
    sink.pwrite(0, b"here")
    sink.hand_over()
    data = pickle.dumps(sink)
    subprocess.run([sys.executable, "-c", script], input=data, cwd="/", check=True)
    assert Path(sink.path).read_bytes() == b"herthere\0again"


def test_a_file_that_is_not_there_is_never_made_by_another_process(sink: FileSink) -> None:
    elsewhere = pickle.loads(pickle.dumps(sink))
    elsewhere.settle()
    os.unlink(sink.path)
    with pytest.raises(OutputError, match="a: cannot be written: No such file"):
        elsewhere.pwrite(0, b"x")
    assert not os.path.exists(sink.path)
