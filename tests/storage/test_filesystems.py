"""What a file system is and can do; where it cannot, something else is done, or nothing."""

from __future__ import annotations

import builtins
import ctypes
import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest

from swavg.storage.filesystems import exchange, is_local, rename_new, reserve, sync_folder

MOUNTS = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 27 0:27 / /shared rw,relatime shared:1 - nfs4 host:/x rw
31 30 0:28 / /shared/fast\\040disk rw,relatime - xfs /dev/vdb rw
32 27 0:29 / /over rw - ext4 /dev/vdc rw
33 27 0:30 / /over rw - fuse.sshfs host: rw
"""


@pytest.fixture
def mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    system_open = builtins.open

    def opened(path: Any, *more: Any, **options: Any) -> Any:
        if path == "/proc/self/mountinfo":
            return io.StringIO(MOUNTS)
        return system_open(path, *more, **options)

    monkeypatch.setattr(builtins, "open", opened)


@pytest.mark.usefixtures("mounts")
@pytest.mark.parametrize(
    ("path", "local"),
    [
        ("/some/where", True),
        ("/shared", False),
        ("/shared/run", False),
        ("/shared/fast disk/run", True),
        ("/sharedtoo", True),
        ("/over/run", False),
    ],
)
def test_only_what_is_known_to_be_local_is(path: str, local: bool) -> None:
    assert is_local(path) == local


def test_a_system_that_does_not_tell_is_not_local(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(builtins, "open", missing)
    assert not is_local("/")


@pytest.mark.parametrize("folder", ["disk", "memory"])
@pytest.mark.parametrize("size", [0, 1, 1 << 20])
def test_a_reserved_file_has_its_size_and_is_zero(tmp_path: Path, folder: str, size: int) -> None:
    path = tmp_path / "a" if folder == "disk" else Path(f"/dev/shm/swavg-test-{os.getpid()}")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        reserve(fd, size, str(path))
        assert path.read_bytes() == bytes(size)
    finally:
        os.close(fd)
        path.unlink()


class Library:
    """A C library whose calls fail with a code."""

    def __init__(self, code: int) -> None:
        self.code = code

    def __getattr__(self, name: str) -> Any:
        def call(*_: object) -> int:
            ctypes.set_errno(self.code)
            return -1

        return call


@pytest.mark.usefixtures("mounts")
@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.EINTR, errno.ENOSPC])
def test_a_disk_that_cannot_reserve_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Library(code))
    with (tmp_path / "a").open("wb") as file:
        if code == errno.ENOSPC:
            with pytest.raises(OSError, match="No space left"):
                reserve(file.fileno(), 100, str(tmp_path / "a"))
        else:
            reserve(file.fileno(), 100, str(tmp_path / "a"))
            assert (tmp_path / "a").stat().st_size == 100


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, errno.ENOTSUP])
def test_names_cannot_be_exchanged_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert exchange(a, b)
    assert (tmp_path / "a").read_text() == "b"
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Library(code))
    assert not exchange(a, b)
    with pytest.raises(FileExistsError):
        rename_new(a, b)
    rename_new(a, str(tmp_path / "c"))
    assert (tmp_path / "c").read_text() == "b"
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Library(errno.EXDEV))
    with pytest.raises(OSError, match="cross-device"):
        exchange(a, b)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_a_folder_that_has_no_sync_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def failing(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", failing)
    if code == errno.EIO:
        with pytest.raises(OSError, match="Input/output error"):
            sync_folder(str(tmp_path))
    else:
        sync_folder(str(tmp_path))
