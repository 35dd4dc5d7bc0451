"""Outputs appear whole under their names, all of them or none."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import make
import pytest
from make import debris

from swavg.errors import OutputError, OutputExistsError
from swavg.storage import pending, temporary
from swavg.storage.destination import Destination, check_destination
from swavg.storage.publish import new_file, publishing


@pytest.fixture
def umask() -> Iterator[Any]:
    """Sets the umask; the old one is back afterwards."""
    before = os.umask(0o022)
    os.umask(before)
    yield os.umask
    os.umask(before)


@pytest.fixture
def no_renameat2(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that cannot exchange names, nor rename without replacing."""

    def missing(*_: object, **__: object) -> None:
        raise OSError(errno.ENOENT, "no library")

    monkeypatch.setattr(ctypes, "CDLL", missing)


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", denied)


def publish_file(path: Path, data: bytes = b"new", *, force: bool = False) -> None:
    with new_file(path, force=force) as file:
        file.write(data)


def publish_folder(path: Path, data: bytes = b"new", *, force: bool = False) -> None:
    with publishing([Destination(str(path), folder=True, force=force)]) as (folder,):
        folder.create("a").pwrite(0, data)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def break_off_file(path: Path, error: BaseException, *, force: bool = False) -> None:
    with new_file(path, force=force) as sink:
        sink.write(b"half")
        raise error


def break_off_folder(path: Path, error: BaseException, *, force: bool = False) -> None:
    with publishing([Destination(str(path), folder=True, force=force)]) as (folder,):
        folder.create("a").pwrite(0, b"half")
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
    with publishing([Destination(str(tmp_path / "out"), folder=True, force=False)]) as (folder,):
        for name in ("a", "b"):
            folder.create(name).pwrite(0, name.encode())
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
    move = pending.rename_new

    def late(source: str, target: str) -> None:
        Path(target).write_bytes(b"theirs")
        move(source, target)

    monkeypatch.setattr(pending, "rename_new", late)
    with pytest.raises(OutputError, match="was created by someone else meanwhile"):
        make_it(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.usefixtures("no_renameat2")
@pytest.mark.parametrize("make_it", [publish_file, publish_folder])
@pytest.mark.parametrize("links", [True, False])
def test_nothing_is_replaced_where_the_system_has_no_renameat2(
    tmp_path: Path, make_it: Any, links: bool, request: pytest.FixtureRequest
) -> None:
    if not links:
        request.getfixturevalue("no_links")
    make_it(tmp_path / "a", b"old")
    with pytest.raises(OutputExistsError, match="was created by someone else meanwhile"):
        make_it(tmp_path / "a", b"new")
    make_it(tmp_path / "a", b"forced", force=True)
    found = tmp_path / "a" / "a" if make_it is publish_folder else tmp_path / "a"
    assert found.read_bytes() == b"forced"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.usefixtures("no_renameat2")
def test_a_folder_that_cannot_be_moved_in_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_folder(tmp_path / "out", b"old")
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


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_takes_the_place_of_an_empty_one_and_its_mode(tmp_path: Path, force: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o2750)
    check_destination(out, 0, force=force, folder=True)
    publish_folder(out, force=force)
    assert tree(tmp_path) == {"out": None, "out/a": b"new"}
    assert mode(out) == 0o2750


def test_a_link_to_an_empty_folder_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    check_destination(tmp_path / "link", 0, force=False, folder=True)
    publish_folder(tmp_path / "link")
    assert os.readlink(tmp_path / "link") == "there"
    assert (tmp_path / "there" / "a").read_bytes() == b"new"


@pytest.mark.parametrize("name", ["a", ".hidden"])
def test_what_comes_into_an_empty_folder_meanwhile_stays(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    outputs = [Destination(str(out), folder=True, force=False)]
    with pytest.raises(OutputExistsError, match="was created by someone else meanwhile"):
        write_all(outputs, lambda: (out / name).write_bytes(b"mine"))
    assert tree(tmp_path) == {"out": None, f"out/{name}": b"mine"}


def test_a_failure_leaves_an_empty_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(0o700)
    with pytest.raises(KeyboardInterrupt):
        break_off_folder(tmp_path / "out", KeyboardInterrupt())
    assert tree(tmp_path) == {"out": None}


def test_an_empty_folder_is_one_again_where_a_later_rename_fails(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one").chmod(0o711)
    outputs = [
        Destination(str(tmp_path / name), folder=True, force=False) for name in ("one", "two")
    ]
    with pytest.raises(OutputExistsError, match="two"):
        write_all(outputs, lambda: put(tmp_path / "two", True, b"mine"))
    assert tree(tmp_path) == {"one": None, "two": None, "two/a": b"mine"}
    assert mode(tmp_path / "one") == 0o711


def test_a_folder_whose_place_none_can_take_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (".", str(tmp_path)):
        with pytest.raises(OutputError, match="is the current folder") as caught:
            check_destination(path, 0, force=False, folder=True)
        assert caught.value.hint == f"Give a name in it, such as {path}/averaged."
    # Nothing can be mounted here.
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda _: True)
    for force in (False, True):
        with pytest.raises(OutputError, match="is a mount point"):
            check_destination("out", 0, force=force, folder=True)
    monkeypatch.undo()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="lies in a folder that is not writable"):
        check_destination(tmp_path / "out", 0, force=False, folder=True)


@pytest.mark.parametrize("make_it", [publish_file, publish_folder])
def test_missing_parents_are_made(tmp_path: Path, make_it: Any) -> None:
    make_it(tmp_path / "new" / "deep" / "a")
    make_it(tmp_path / "new" / "deep" / "b")
    assert sorted(os.listdir(tmp_path / "new" / "deep")) == ["a", "b"]


@pytest.mark.parametrize("break_off", [break_off_file, break_off_folder])
@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_missing_parents_go_again_where_the_output_fails(
    tmp_path: Path, break_off: Any, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        break_off(tmp_path / "new" / "deep" / "a", error)
    assert os.listdir(tmp_path) == []


def test_several_outputs_share_the_parents_that_are_made(tmp_path: Path) -> None:
    paths = [tmp_path / "new" / "a" / "x", tmp_path / "new" / "b" / "y", tmp_path / "new" / "z"]
    outputs = [Destination(str(path), folder=False, force=False) for path in paths]
    with pytest.raises(RuntimeError, match="stop"), publishing(outputs):
        raise RuntimeError("stop")
    assert os.listdir(tmp_path) == []
    with publishing(outputs) as pendings:
        for pending in pendings:
            pending.create().pwrite(0, b"new")
    assert [path.read_bytes() for path in paths] == [b"new"] * 3


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
    fsync, move = os.fsync, pending.rename_new

    def synced(fd: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def moved(source: str, target: str) -> None:
        events.append("rename")
        move(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(pending, "rename_new", moved)
    publish_file(tmp_path / "a")
    assert events == ["file", "rename", "folder"]
    events.clear()
    publish_folder(tmp_path / "out")
    assert events == ["file", "folder", "rename", "folder"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, bytes(data[:1]), at))
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
from swavg.errors import OutputError
from swavg.storage.destination import Destination
from swavg.storage.publish import new_file, publishing
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
path, kind, size = sys.argv[1:]
try:
    if kind == "file":
        with new_file(path, force=True) as file:
            for _ in range(10):
                file.write(b"x" * 1000)
    else:
        with publishing([Destination(path, folder=True, force=True)]) as (folder,):
            folder.create("a", int(size)).pwrite(0, b"x" * 10000)
except OutputError as error:
    print(error)
"""


@pytest.mark.parametrize(("kind", "size"), [("file", 0), ("folder", 0), ("folder", 10000)])
def test_a_disk_that_takes_no_more_is_an_output_error_without_debris(
    tmp_path: Path, kind: str, size: int
) -> None:
    done = make.python(_LIMITED, str(tmp_path / "out"), kind, str(size))
    assert done.stdout == f"{tmp_path / 'out'}: cannot be written: File too large\n"
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"old")
    pwrite = os.pwrite

    def full(fd: int, data: Any, at: int) -> int:
        if len(data) < 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(fd, bytes(data[:4]), at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match="cannot be written: the disk is full"):
        publish_file(tmp_path / "a", b"ten bytes!", force=True)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


# Several outputs: all or none.

CASES = {
    "new file": (False, None),
    "replaced file": (False, b"old"),
    "new folder": (True, None),
    "replaced folder": (True, b"old"),
}


def put(path: Path, folder: bool, data: bytes) -> None:
    if folder:
        path.mkdir()
    (path / "a" if folder else path).write_bytes(data)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Bytes of all files, and None for folders, by name."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def several(tmp_path: Path, cases: list[str], *, force: bool = True) -> list[Destination]:
    """A destination per case, with what it replaces."""
    outputs = []
    for index, case in enumerate(cases):
        folder, old = CASES[case]
        if old is not None:
            put(tmp_path / str(index), folder, old)
        outputs.append(Destination(str(tmp_path / str(index)), folder, force))
    return outputs


def write_all(
    outputs: list[Destination], then: Callable[[], object] = lambda: None, **more: Any
) -> list[str]:
    """Publish b"new" at each; what was warned of."""
    with publishing(outputs, **more) as made:
        for one in made:
            one.create("a" if one.output.folder else "", 3).pwrite(0, b"new")
        then()
    return [warning for one in made for warning in one.warnings]


ALL = [*CASES, *CASES]


def test_several_outputs_appear_together(tmp_path: Path) -> None:
    outputs = several(tmp_path, ALL)
    before = tree(tmp_path)
    called = []

    def on_publish() -> None:
        called.append({name: data for name, data in tree(tmp_path).items() if name[0] != "."})

    assert write_all(outputs, on_publish=on_publish) == []
    assert called == [before]
    for output in outputs:
        path = Path(output.path)
        assert (path / "a" if output.folder else path).read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == [str(index) for index in range(len(ALL))]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_rename_that_fails_takes_all_earlier_ones_back(
    tmp_path: Path, exchange: bool, request: pytest.FixtureRequest
) -> None:
    cases = ALL if exchange else [case for case in ALL if case != "replaced folder"]
    outputs = several(tmp_path, cases)
    outputs.append(Destination(str(tmp_path / "last"), folder=False, force=False))
    before = tree(tmp_path)
    inodes = {name: (tmp_path / name).stat().st_ino for name in before}
    if not exchange:
        request.getfixturevalue("no_renameat2")
    with pytest.raises(OutputExistsError, match="was created by someone else") as caught:
        write_all(outputs, lambda: (tmp_path / "last").write_bytes(b"theirs"))
    assert caught.value.exit_code == 7
    assert tree(tmp_path) == {**before, "last": b"theirs"}
    assert {name: (tmp_path / name).stat().st_ino for name in before} == inodes


def test_an_interrupt_between_renames_takes_all_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = several(tmp_path, ["replaced file", "new file", "new folder", "new file"])
    before, move, calls = tree(tmp_path), pending.rename_new, []

    def interrupted(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == 3:
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(pending, "rename_new", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_all(outputs)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("at", range(1, 6))
def test_a_sync_that_fails_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """All are synced before the first gets its name: here four files and the folder of one."""
    outputs = several(tmp_path, ["new file", "replaced file", "new file", "replaced folder"])
    before, fsync, calls = tree(tmp_path), os.fsync, []

    def full(fd: int) -> None:
        calls.append(fd)
        if len(calls) == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="the disk is full") as caught:
        write_all(outputs, on_publish=lambda: pytest.fail("published"))
    assert (caught.value.exit_code, len(calls)) == (5, at)
    assert tree(tmp_path) == before


def test_outputs_may_be_synced_and_verified_before_the_block_ends(tmp_path: Path) -> None:
    outputs = several(tmp_path, ["new file", "new folder"])
    with publishing(outputs) as made:
        made[0].create(size=3).pwrite(0, b"new")
        made[1].create("a", 3).pwrite(0, b"new")
        for one in made:
            one.sync()
            one.sync()
        assert Path(made[0].path).read_bytes() == b"new"
        assert (Path(made[1].path) / "a").read_bytes() == b"new"
    assert tree(tmp_path) == {"0": b"new", "1": None, "1/a": b"new"}


def test_a_name_that_somebody_else_took_since_is_not_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = several(tmp_path, ["replaced file", "new file", "replaced folder", "new file"])
    move, calls = pending.rename_new, []

    def second_fails(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == 2:
            for name in ("0", "1"):
                (tmp_path / "theirs").write_bytes(b"theirs")
                os.rename(tmp_path / "theirs", tmp_path / name)
            raise OSError(errno.EIO, "Input/output error")
        move(source, target)

    monkeypatch.setattr(pending, "rename_new", second_fails)
    with pytest.raises(OutputError, match="Input/output error") as caught:
        write_all(outputs)
    left = {name: data for name, data in tree(tmp_path).items() if name[0] != "."}
    assert left == {"0": b"theirs", "1": b"theirs", "2": None, "2/a": b"old"}
    # What was there before all this is not lost, and is found.
    (kept,) = debris(tmp_path)
    assert (tmp_path / kept).read_bytes() == b"old"
    assert str(tmp_path / kept) in str(caught.value)
    assert temporary.clear_partials(outputs[0].path) == [
        f"{tmp_path / kept} is what was there before a run that replaced it and did not end well"
    ]


@pytest.mark.parametrize("case", ["replaced file", "replaced folder"])
def test_what_cannot_be_put_back_is_kept_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    outputs = several(tmp_path, [case, "new file"])

    def broken(*_: object) -> bool:
        raise OSError(errno.EIO, "Input/output error")

    def rename_fails(*_: object) -> None:
        monkeypatch.setattr(pending, "exchange", broken)
        broken()

    monkeypatch.setattr(pending, "rename_new", rename_fails)
    with pytest.raises(OutputError, match="1: cannot be written: Input/output error") as caught:
        write_all(outputs)
    (kept,) = debris(tmp_path)
    assert caught.value.hint == (
        f"What {tmp_path / '0'} was before lies at {tmp_path / kept} (Input/output error)."
    )
    found = tmp_path / kept / "a" if case == "replaced folder" else tmp_path / kept
    assert found.read_bytes() == b"old"
    monkeypatch.undo()
    assert len(notes_of(outputs[0])) == 1
    assert found.read_bytes() == b"old"


def test_an_interrupt_while_one_is_cleared_away_still_clears_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = several(tmp_path, ["new file"] * 3)
    remove, calls = pending.remove, []

    def interrupted(path: str) -> bool:
        left = remove(path)
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return left

    def stop() -> None:
        raise RuntimeError("stop")

    monkeypatch.setattr(pending, "remove", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_all(outputs, stop)
    assert len(calls) == 3
    assert tree(tmp_path) == {}


@pytest.mark.usefixtures("no_renameat2")
@pytest.mark.parametrize("case", ["replaced file", "replaced folder"])
def test_what_could_not_be_put_back_is_not_replaced_with_others(
    tmp_path: Path, case: str, request: pytest.FixtureRequest
) -> None:
    if case == "replaced file":
        request.getfixturevalue("no_links")
    outputs = several(tmp_path, ["new file", case])
    before = tree(tmp_path)
    with pytest.raises(OutputError, match="cannot be replaced together with others"):
        write_all(outputs, lambda: pytest.fail("begun"))
    assert tree(tmp_path) == before
    assert write_all(outputs[1:]) == []


def test_a_stream_has_no_name_to_be_given(tmp_path: Path) -> None:
    outputs = [*several(tmp_path, ["new file"]), Destination("/dev/null", False, True)]
    with pytest.raises(OutputError, match="is a pipe or device"):
        write_all(outputs)
    assert tree(tmp_path) == {}


# What goes wrong after the names were given is a warning.


def fails_once_published(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> Callable[[], None]:
    """For on_publish: from then on the call fails."""

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    return lambda: monkeypatch.setattr(module, name, failing)


def test_a_folder_that_cannot_be_synced_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = several(tmp_path, ["new file", "replaced folder"])
    warnings = write_all(outputs, on_publish=fails_once_published(monkeypatch, os, "fsync"))
    assert tree(tmp_path) == {"0": b"new", "1": None, "1/a": b"new"}
    assert warnings == [
        f"{tmp_path} could not be synced (Input/output error): after a power failure the new"
        " names in it may be missing"
    ]


@pytest.mark.parametrize("case", ["replaced file", "replaced folder"])
def test_what_is_old_and_cannot_be_removed_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    outputs = several(tmp_path, [case, "new file"])

    def on_publish() -> None:
        monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
        fails_once_published(monkeypatch, os, "unlink")()

    warnings = write_all(outputs, on_publish=on_publish)
    monkeypatch.undo()
    (left,) = debris(tmp_path)
    assert warnings == [f"{tmp_path / left} could not be removed; it is not needed any more"]
    found = tmp_path / left / "a" if case == "replaced folder" else tmp_path / left
    assert found.read_bytes() == b"old"
    with publishing(outputs) as made:
        for one in made:
            one.create("a" if one.output.folder else "")
    assert made[0].notes == [f"removed {tmp_path / left}, which an earlier run had left"]
    assert debris(tmp_path) == []


@pytest.mark.usefixtures("no_renameat2")
def test_a_second_name_that_cannot_be_removed_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = several(tmp_path, ["new file"])
    warnings = write_all(outputs, on_publish=fails_once_published(monkeypatch, os, "unlink"))
    (left,) = debris(tmp_path)
    assert warnings == [f"{tmp_path / left} could not be removed; it is not needed any more"]
    assert (tmp_path / "0").read_bytes() == b"new"


# Several outputs in a new folder.


def inside(folder: Path) -> list[Destination]:
    return [
        Destination(str(folder / "a.safetensors"), folder=False, force=False),
        Destination(str(folder / "b"), folder=True, force=False),
    ]


def test_a_new_folder_appears_with_all_that_is_in_it(tmp_path: Path) -> None:
    out = tmp_path / "made" / "too" / "out"
    seen = []

    def look() -> None:
        seen.append([name for name in tree(tmp_path) if not name.endswith("partial")])

    assert write_all(inside(out), inside=str(out), on_publish=look) == []
    assert "made/too/out" not in seen[0]
    assert tree(out) == {"a.safetensors": b"new", "b": None, "b/a": b"new"}
    assert debris(out.parent) == []


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_a_new_folder_that_is_not_finished_leaves_nothing(
    tmp_path: Path, error: BaseException
) -> None:
    out = tmp_path / "made" / "too" / "out"

    def stop() -> None:
        raise error

    with pytest.raises(type(error)):
        write_all(inside(out), stop, inside=str(out))
    assert tree(tmp_path) == {}


def test_folders_above_that_somebody_else_uses_stay(tmp_path: Path) -> None:
    out = tmp_path / "made" / "too" / "out"
    with pytest.raises(OutputExistsError, match="was created by someone else meanwhile"):
        write_all(inside(out), out.mkdir, inside=str(out))
    assert tree(tmp_path) == {"made": None, "made/too": None, "made/too/out": None}


def test_a_folder_above_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    out = tmp_path / "file" / "out"
    with pytest.raises(OutputError, match="cannot be written"):
        write_all(inside(out), inside=str(out))
    assert tree(tmp_path) == {"file": b"mine"}


def test_a_folder_that_exists_gets_its_outputs_together(tmp_path: Path) -> None:
    out = tmp_path / "out"
    put(out, True, b"mine")
    assert write_all(inside(out), inside=str(out)) == []
    assert tree(out) == {"a": b"mine", "a.safetensors": b"new", "b": None, "b/a": b"new"}
    before = tree(out)
    with pytest.raises(OutputExistsError):
        write_all(inside(out), inside=str(out))
    assert tree(tmp_path / "out") == before


# Runs that were killed.

_UNFINISHED = """
import sys
from swavg.storage.destination import Destination
from swavg.storage.publish import publishing
with publishing([Destination(sys.argv[1], folder=sys.argv[2] == "folder", force=True)]) as (one,):
    one.create("a" if one.output.folder else "", 1000).pwrite(0, b"half")
    print(one.path, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["file", "folder"])
def running(
    tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[Destination, subprocess.Popen[str], Path]]:
    """A run in another process that does not end, and where it writes."""
    kind: str = request.param
    process = subprocess.Popen(
        [sys.executable, "-c", _UNFINISHED, str(tmp_path / "out"), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    path = Path(process.stdout.readline().strip())
    yield Destination(str(tmp_path / "out"), kind == "folder", True), process, path
    with suppress(ProcessLookupError):
        process.kill()
    process.communicate()


def notes_of(output: Destination) -> list[str]:
    with publishing([output]) as (one,):
        one.create("a" if output.folder else "").pwrite(0, b"new")
    return one.notes


def test_what_a_killed_run_left_is_removed(
    running: tuple[Destination, subprocess.Popen[str], Path],
) -> None:
    output, process, path = running
    assert notes_of(output) == [f"{path} is being written by another run"]
    assert path.exists()
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    other = path.with_name(".out.x.0123abcd.swavg-partial")
    other.write_bytes(b"of another output")
    assert notes_of(output) == [f"removed {path}, which an earlier run had left"]
    assert debris(path.parent) == [other.name]
    assert notes_of(output) == []


def test_where_another_host_may_write_it_is_only_named(
    running: tuple[Destination, subprocess.Popen[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, process, path = running
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    monkeypatch.setattr(temporary, "is_local", lambda _: False)
    assert notes_of(output) == [f"{path} is unfinished; if no other run is writing it, remove it"]
    assert path.exists()


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_what_is_no_output_is_not_removed(tmp_path: Path, kind: str) -> None:
    left = tmp_path / ".out.0123abcd.swavg-partial"
    (tmp_path / "mine").mkdir()
    left.symlink_to("mine") if kind == "link" else os.mkfifo(left)
    notes_of(Destination(str(tmp_path / "out"), folder=True, force=True))
    assert os.path.lexists(left)
    assert (tmp_path / "mine").is_dir()


def test_a_temporary_that_is_taken_for_abandoned_at_once_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run may look between the creation and the lock."""
    system_open, taken = os.open, []

    def late(path: Any, flags: int, *more: int) -> int:
        fd = system_open(path, flags, *more)
        if flags & os.O_CREAT and not taken:
            taken.append(path)
            assert temporary.clear_partials(str(tmp_path / "a")) == [
                f"removed {path}, which an earlier run had left"
            ]
        return fd

    monkeypatch.setattr(os, "open", late)
    publish_file(tmp_path / "a")
    assert len(taken) == 1
    assert tree(tmp_path) == {"a": b"new"}


# Space.


def test_space_is_reserved_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with publishing([Destination(str(tmp_path / "a"), False, False)]) as (one,):
        sink = one.create(size=1 << 20)
        assert os.stat(sink.path).st_size == 1 << 20
        sink.pwrite((1 << 20) - 1, b"x")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", full)
    with pytest.raises(OutputError, match="b: cannot be written: the disk is full"):
        write_all([Destination(str(tmp_path / "b"), False, False)], lambda: pytest.fail("begun"))
    assert os.listdir(tmp_path) == ["a"]


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    write_all(several(tmp_path, ALL))
    with pytest.raises(RuntimeError):
        break_off_file(tmp_path / "x", RuntimeError("stop"))
    assert os.listdir("/proc/self/fd") == before
