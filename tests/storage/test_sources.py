"""Sources are values; what changes under a run is noticed, what does not matter is forgiven."""

from __future__ import annotations

import errno
import os
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace as with_other
from pathlib import Path

import pytest

from swavg.errors import InputError
from swavg.storage.pool import Pool
from swavg.storage.sources import LocalFile, Memory

DATA = bytes(range(256)) * 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(DATA)
    return tmp_path / "a"


def read(source: LocalFile, offset: int = 0, size: int = 16) -> bytes:
    with Pool() as pool:
        return bytes(pool.read(source, offset, size))


def test_a_file_is_a_picklable_value(path: Path) -> None:
    source = LocalFile.find(str(path))
    restored = pickle.loads(pickle.dumps(source))
    assert (restored, hash(restored)) == (source, hash(source))
    assert (source.name, source.size, source.forks) == (str(path), len(DATA), True)
    facts = path.stat()
    assert source.identity == (facts.st_dev, facts.st_ino)
    assert read(restored, 250, 12) == DATA[250:262]


def hard_link(path: Path) -> None:
    os.link(path, path.with_name("link"))


def chmod(path: Path) -> None:
    path.chmod(0o600 if path.stat().st_mode & 0o77 else 0o644)


def chown(path: Path) -> None:
    if os.getuid() == 0:
        os.chown(path, 12345, 12345)
    else:
        chmod(path)


@pytest.mark.parametrize("touch", [hard_link, chmod, chown])
def test_a_link_a_mode_or_an_owner_may_change(path: Path, touch: Callable[[Path], None]) -> None:
    source = LocalFile.find(str(path))
    with Pool() as pool:
        pool.read(source, 0, 4)
        touch(path)
        source.check()
        assert bytes(pool.read(source, 0, 4)) == DATA[:4]
    assert read(source) == DATA[:16]


def overwrite_and_restore_the_time(path: Path) -> None:
    facts = path.stat()
    with path.open("r+b") as file:
        file.write(b"x")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.rename(path)


def truncate(path: Path) -> None:
    os.truncate(path, 10)


def set_the_time(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def test_another_machine_has_other_numbers_for_the_same_file(path: Path) -> None:
    source = LocalFile.find(str(path))
    device, inode, *rest = source.stamp
    elsewhere = with_other(source, stamp=(device + 1, inode + 1, *rest))
    elsewhere.check()
    append(path)
    with pytest.raises(InputError, match="changed while it was read"):
        elsewhere.check()


@pytest.mark.parametrize(
    "change", [overwrite_and_restore_the_time, append, replace, truncate, set_the_time]
)
def test_what_changed_is_an_input_error(path: Path, change: Callable[[Path], None]) -> None:
    source = LocalFile.find(str(path))
    change(path)
    for look in (source.check, source.open):
        with pytest.raises(InputError, match="changed while it was read") as caught:
            look()
        assert caught.value.path == str(path)


def test_what_is_gone_is_an_input_error(path: Path) -> None:
    source = LocalFile.find(str(path))
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        source.check()
    with pytest.raises(InputError, match="cannot be read: No such file"):
        source.open()


def test_a_file_that_becomes_a_fifo_does_not_hang(path: Path) -> None:
    source = LocalFile.find(str(path))
    path.unlink()
    os.mkfifo(path)
    for look in (source.check, source.open):
        with pytest.raises(InputError, match="not a regular file"):
            look()


@pytest.mark.parametrize(
    ("name", "problem"), [("", "an empty path"), ("a\0b", "NUL byte"), ("x" * 300, "too long")]
)
def test_no_file_has_such_a_name(name: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        LocalFile.find(name)


@pytest.mark.parametrize("kind", ["folder", "fifo", "device"])
def test_only_regular_files_are_inputs(tmp_path: Path, kind: str) -> None:
    path = {"folder": str(tmp_path), "fifo": str(tmp_path / "p"), "device": "/dev/null"}[kind]
    if kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(InputError, match="not a regular file"):
        LocalFile.find(path)


def test_short_reads_are_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:3]], offset)
    )
    assert read(LocalFile.find(str(path)), 5, 100) == DATA[5:105]


def test_a_read_error_names_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(InputError, match="read error: Input/output error") as caught:
        read(LocalFile.find(str(path)))
    assert (caught.value.path, caught.value.exit_code) == (str(path), 4)


def test_a_file_that_ends_too_early_says_where(path: Path) -> None:
    with pytest.raises(InputError, match="ends at byte 1024, 6 bytes short of its data"):
        read(LocalFile.find(str(path)), 1020, 10)


def test_an_input_that_cannot_be_closed_is_no_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = os.close

    def failing(fd: int) -> None:
        close(fd)
        raise OSError(errno.EIO, "Input/output error")

    source = LocalFile.find(str(path))
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", failing)
        assert read(source) == DATA[:16]


def test_memory_is_read_as_a_file_is() -> None:
    source = Memory("statistics", memoryview(DATA))
    source.check()
    with Pool() as pool:
        assert bytes(pool.read(source, 3, 5)) == DATA[3:8]
    assert (source.size, source.forks) == (len(DATA), True)
    assert source.identity != Memory("statistics", memoryview(DATA)).identity


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_pool_keeps_few_files_open(tmp_path: Path) -> None:
    before = open_files()
    sources = []
    for index in range(20):
        (tmp_path / str(index)).write_bytes(bytes([index]) * 8)
        sources.append(LocalFile.find(str(tmp_path / str(index))))
    with Pool(limit=5) as pool:
        for _ in range(2):
            for index, source in enumerate(sources):
                assert pool.read(source, 2, 4) == bytes([index]) * 4
                assert open_files() <= before + 5
    assert open_files() == before


def test_a_pool_makes_room_when_too_many_files_are_open(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b").write_bytes(DATA)
    first, second = LocalFile.find(str(path)), LocalFile.find(str(tmp_path / "b"))
    system_open, fails = os.open, [True]

    def limited(name: str, flags: int, *more: int) -> int:
        if name == second.name and fails.pop(0):
            raise OSError(errno.EMFILE, "Too many open files")
        return system_open(name, flags, *more)

    with Pool() as pool:
        pool.read(first, 0, 4)
        fails[:] = [True, False]
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", limited)
            assert bytes(pool.read(second, 0, 4)) == DATA[:4]
            pool.close()
            fails[:] = [True, True]
            with pytest.raises(InputError, match="Too many open files") as caught:
                pool.read(second, 0, 4)
    assert caught.value.path == second.name


def test_a_pool_is_shared_between_threads(path: Path) -> None:
    source, wrong = LocalFile.find(str(path)), []
    with Pool(limit=2) as pool:

        def work() -> None:
            for offset in range(500):
                if bytes(pool.read(source, offset, 8)) != DATA[offset : offset + 8]:
                    wrong.append(offset)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_memory_goes_along_to_another_process() -> None:
    first = Memory("a", memoryview(b"abcdef"))
    there, again = pickle.loads(pickle.dumps((first, first)))
    assert there is again
    with Pool() as pool:
        assert pool.read(there, 2, 3) == b"cde"
