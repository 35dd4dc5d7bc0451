"""Outputs appear whole under their name, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import make
import numpy as np
import pytest
import safetensors.numpy
from make import debris

from swavg import publish
from swavg.errors import OutputError
from swavg.publish import check_destination, new_file, new_folder, write_into


@pytest.fixture
def umask() -> Iterator[Any]:
    """Sets the umask; the old one is back afterwards."""
    before = os.umask(0o022)
    os.umask(before)
    yield os.umask
    os.umask(before)


def publish_file(path: Path, data: bytes = b"new", *, force: bool = False) -> None:
    with new_file(path, force=force) as sink:
        sink.write(data)


def publish_folder(path: Path, data: bytes = b"new", *, force: bool = False) -> None:
    with new_folder(path, force=force) as folder, write_into(folder, "a", shown=str(path)) as sink:
        sink.write(data)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def break_off_file(path: Path, error: BaseException, *, force: bool = False) -> None:
    with new_file(path, force=force) as sink:
        sink.write(b"half")
        raise error


def break_off_folder(path: Path, error: BaseException, *, force: bool = False) -> None:
    with new_folder(path, force=force) as folder, write_into(folder, "a", shown="out") as sink:
        sink.write(b"half")
        raise error


def test_a_file_appears_with_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with new_file(path) as sink:
        sink.write(b"one")
        sink.write(bytearray(b" two"))
        sink.write(memoryview(b""))
        sink.write(memoryview(b" three"))
        assert not path.exists()
        assert (sink.written, Path(sink.path).read_bytes()) == (13, b"one two three")
    assert path.read_bytes() == b"one two three"
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_appears_with_what_was_written(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as folder:
        for name in ("a", "b"):
            with write_into(folder, name, shown="out") as sink:
                sink.write(name.encode())
        assert not (tmp_path / "out").exists()
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {"a": b"a", "b": b"b"}
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("break_off", [break_off_file, break_off_folder])
def test_an_exception_leaves_nothing(tmp_path: Path, break_off: Any, force: bool) -> None:
    with pytest.raises(RuntimeError, match="stop"):
        break_off(tmp_path / "a", RuntimeError("stop"), force=force)
    assert os.listdir(tmp_path) == []


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        break_off_file(tmp_path / "a", KeyboardInterrupt(), force=True)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_an_exception_leaves_the_old_folder(tmp_path: Path) -> None:
    publish_folder(tmp_path / "out", b"old")
    with pytest.raises(RuntimeError, match="stop"):
        break_off_folder(tmp_path / "out", RuntimeError("stop"), force=True)
    assert (tmp_path / "out" / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("make_it", [publish_file, publish_folder])
def test_what_exists_is_not_replaced_unasked(tmp_path: Path, make_it: Any) -> None:
    make_it(tmp_path / "a", b"old")
    with pytest.raises(OutputError, match="was created by someone else meanwhile"):
        make_it(tmp_path / "a", b"new")
    found = tmp_path / "a" / "a" if make_it is publish_folder else tmp_path / "a"
    assert found.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("make_it", [publish_file, publish_folder])
def test_what_appears_meanwhile_is_not_replaced(
    tmp_path: Path, make_it: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = publish._rename_new

    def late(source: Path, target: Path) -> None:
        target.write_bytes(b"theirs")
        move(source, target)

    monkeypatch.setattr(publish, "_rename_new", late)
    with pytest.raises(OutputError, match="was created by someone else meanwhile"):
        make_it(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("make_it", [publish_file, publish_folder])
@pytest.mark.parametrize("links", [True, False])
def test_nothing_is_replaced_where_the_system_has_no_renameat2(
    tmp_path: Path, make_it: Any, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "_renameat2", lambda *_: False)
    if not links:

        def denied(*_: Any) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", denied)
    make_it(tmp_path / "a", b"old")
    with pytest.raises(OutputError, match="was created by someone else meanwhile"):
        make_it(tmp_path / "a", b"new")
    make_it(tmp_path / "a", b"forced", force=True)
    found = tmp_path / "a" / "a" if make_it is publish_folder else tmp_path / "a"
    assert found.read_bytes() == b"forced"
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_that_cannot_be_moved_in_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_folder(tmp_path / "out", b"old")
    monkeypatch.setattr(publish, "_renameat2", lambda *_: False)
    rename = os.rename
    calls = []

    def second_fails(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(OutputError, match="Input/output error"):
        publish_folder(tmp_path / "out", b"new", force=True)
    assert (tmp_path / "out" / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out"]


def test_force_replaces_a_file_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o640)
    publish_file(path, force=True)
    assert (path.read_bytes(), mode(path)) == (b"new", 0o640)


def test_force_replaces_a_folder_as_a_whole(tmp_path: Path) -> None:
    publish_folder(tmp_path / "out", b"old")
    (tmp_path / "out" / "left").write_text("over")
    publish_folder(tmp_path / "out", force=True)
    assert os.listdir(tmp_path / "out") == ["a"]
    assert (tmp_path / "out" / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_new_outputs_have_the_mode_that_the_umask_leaves(
    tmp_path: Path, umask: Any, mask: int, file: int, folder: int
) -> None:
    umask(mask)
    publish_file(tmp_path / "a")
    publish_folder(tmp_path / "out")
    modes = [mode(tmp_path / name) for name in ("a", "out", "out/a")]
    assert modes == [file, folder, file]


def test_a_link_stays_a_link_to_the_new_file(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real/file")
    publish_file(tmp_path / "link", force=True)
    assert os.readlink(tmp_path / "link") == "real/file"
    assert (tmp_path / "real" / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path / "real") == ["file"]


def test_a_link_to_nothing_stays_a_link_to_the_new_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    publish_file(tmp_path / "link")
    assert os.readlink(tmp_path / "link") == "file"
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_link_to_a_folder_stays_a_link_to_the_new_folder(tmp_path: Path) -> None:
    publish_folder(tmp_path / "real", b"old")
    (tmp_path / "link").symlink_to("real")
    publish_folder(tmp_path / "link", force=True)
    assert os.readlink(tmp_path / "link") == "real"
    assert (tmp_path / "real" / "a").read_bytes() == b"new"


@pytest.mark.parametrize("force", [False, True])
def test_a_fifo_is_written_to_and_stays(tmp_path: Path, force: bool) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    check_destination(path, 1 << 62, force=force)
    publish_file(path, b"x" * 100_000, force=force)
    reader.join(10)
    assert read == [b"x" * 100_000]
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_fifo_whose_reader_goes_away_is_an_output_error(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with new_file(path) as sink:
        os.close(reader)
        with pytest.raises(OutputError, match="its reader went away"):
            sink.write(b"x")
    assert stat.S_ISFIFO(path.stat().st_mode)


@pytest.mark.parametrize("force", [False, True])
def test_a_device_is_written_to_and_stays(force: bool) -> None:
    publish_file(Path("/dev/null"), b"x" * 10, force=force)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_full_device_is_an_output_error() -> None:
    with pytest.raises(OutputError, match="the disk is full") as caught:
        publish_file(Path("/dev/full"))
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_never_takes_the_place_of_a_device_or_a_fifo(tmp_path: Path, force: bool) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OutputError, match="is no folder"):
        check_destination(path, 0, force=force, folder=True)
    with pytest.raises(OutputError):
        publish_folder(path, force=force)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_never_takes_the_place_of_a_file(tmp_path: Path, force: bool) -> None:
    (tmp_path / "a").write_bytes(b"mine")
    with pytest.raises(OutputError):
        check_destination(tmp_path / "a", 0, force=force, folder=True)
    with pytest.raises(OutputError):
        publish_folder(tmp_path / "a", force=force)
    assert (tmp_path / "a").read_bytes() == b"mine"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("force", [False, True])
def test_a_file_never_takes_the_place_of_a_folder(tmp_path: Path, force: bool) -> None:
    publish_folder(tmp_path / "out", b"mine")
    with pytest.raises(OutputError):
        check_destination(tmp_path / "out", 0, force=force)
    with pytest.raises(OutputError):
        publish_file(tmp_path / "out", force=force)
    assert (tmp_path / "out" / "a").read_bytes() == b"mine"
    assert os.listdir(tmp_path) == ["out"]


def test_what_would_fail_later_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").write_text("")
    with pytest.raises(OutputError, match="exists already"):
        check_destination(tmp_path / "old", 0, force=False)
    with pytest.raises(OutputError, match="there is no folder"):
        check_destination(tmp_path / "nowhere" / "a", 0, force=False)
    with pytest.raises(OutputError, match=r"needs [\d,]+ bytes, and only [\d,]+ are free"):
        check_destination(tmp_path / "a", 1 << 62, force=False)
    # Root may write everywhere, so that the system's answer is played.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="is not writable"):
        check_destination(tmp_path / "a", 0, force=False)
    assert os.listdir(tmp_path) == ["old"]


@pytest.mark.parametrize("make_it", [publish_file, publish_folder])
def test_a_missing_parent_is_an_output_error(tmp_path: Path, make_it: Any) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        make_it(tmp_path / "nowhere" / "a")


def test_a_folder_that_may_not_be_written_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system_open = os.open

    def denied(path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return system_open(path, flags, mode, **more)

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        publish_file(tmp_path / "a")
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        publish_folder(tmp_path / "out")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", ["fsync", "close"])
def test_a_disk_that_fails_late_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    system_close = os.close

    def failing(fd: int) -> None:
        if call == "close":
            system_close(fd)
        raise OSError(errno.EIO, "Input/output error")

    def break_down() -> None:
        with monkeypatch.context() as patch, new_file(tmp_path / "a", force=True) as sink:
            sink.write(b"new")
            patch.setattr(os, call, failing)

    with pytest.raises(OutputError, match="Input/output error"):
        break_down()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_is_synced_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, move = os.fsync, publish._rename_new

    def synced(fd: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def moved(source: Path, target: Path) -> None:
        events.append("rename")
        move(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(publish, "_rename_new", moved)
    publish_file(tmp_path / "a")
    assert events == ["file", "rename", "folder"]
    events.clear()
    publish_folder(tmp_path / "out")
    assert events == ["file", "folder", "rename", "folder"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data[:1])))
    publish_file(tmp_path / "a", b"byte by byte")
    assert (tmp_path / "a").read_bytes() == b"byte by byte"


@pytest.mark.parametrize(
    "name", ["x" * 255, "ä" * 127, "層" * 85, "a\nb", "a b\t'\"", "-", "😀.safetensors", "\udcff"]
)
@pytest.mark.parametrize("make_it", [publish_file, publish_folder])
def test_names_of_any_kind_and_length_can_be_written(
    tmp_path: Path, name: str, make_it: Any
) -> None:
    make_it(tmp_path / name)
    make_it(tmp_path / name, b"newer", force=True)
    found = tmp_path / name / "a" if make_it is publish_folder else tmp_path / name
    assert found.read_bytes() == b"newer"
    assert os.listdir(tmp_path) == [name]


def test_a_relative_path_is_written_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    publish_file(Path("a"))
    publish_folder(Path("out"))
    assert sorted(os.listdir(tmp_path)) == ["a", "out"]


_LIMITED = """
import os, resource, signal, sys
from swavg import publish
from swavg.errors import OutputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
path, kind = sys.argv[1:]
try:
    if kind == "file":
        with publish.new_file(path, force=True) as sink:
            for _ in range(10):
                sink.write(b"x" * 1000)
    else:
        with publish.new_folder(path, force=True) as folder:
            with publish.write_into(folder, "a", shown=path) as sink:
                sink.write(b"x" * 10000)
except OutputError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_disk_that_takes_no_more_is_an_output_error_without_debris(
    tmp_path: Path, kind: str
) -> None:
    done = make.python(_LIMITED, str(tmp_path / "out"), kind)
    assert done.stdout == f"{tmp_path / 'out'}: cannot be written: File too large\n"
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"old")
    write = os.write

    def full(fd: int, data: Any) -> int:
        if len(data) < 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, bytes(data[:4]))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match="cannot be written: the disk is full"):
        publish_file(tmp_path / "a", b"ten bytes!", force=True)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def valid(path: Path, expected: np.ndarray[Any, Any]) -> bool:
    return bool(np.array_equal(safetensors.numpy.load_file(path)["x"], expected))


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True])
def test_a_kill_at_any_moment_leaves_the_destination_whole(tmp_path: Path, old: bool) -> None:
    zeros, random_state = np.zeros(5 << 20, np.float32), random.Random(old)
    for value in (1, 2):
        made = safetensors.numpy.save({"x": zeros + value})
        (tmp_path / f"{value}.safetensors").write_bytes(made)
    out = tmp_path / "out.safetensors"
    command = [
        sys.executable,
        "-m",
        "swavg",
        "average",
        "1.safetensors",
        "2.safetensors",
        "--force",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*command, "-q", "-o", out.name],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    begun = time.monotonic()
    assert start().wait(60) == 0
    whole = time.monotonic() - begun
    partial = finished = 0
    for _ in range(13):
        out.unlink(missing_ok=True)
        if old:
            out.write_bytes(safetensors.numpy.save({"x": zeros}))
        process = start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            # Most kills fall into the second half: before, modules are imported.
            process.wait(whole * random_state.triangular(0.3, 1.1, 0.8))
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        partial += bool(debris(tmp_path))
        for name in debris(tmp_path):
            (tmp_path / name).unlink()
        if out.exists() and valid(out, zeros + 1.5):
            finished += 1
        else:
            assert out.exists() == old
            assert not old or valid(out, zeros)
    assert partial + finished >= 2
    assert valid(tmp_path / "1.safetensors", zeros + 1)
