"""Outputs that appear whole and durable under their name, or not at all.

A file or folder is written under a temporary name beside its destination, synced, and renamed.
Until the rename the destination is as it was; on any error the temporary is removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from swavg.errors import OutputError, OutputExistsError, ReaderGoneError

_FORCE = "Use force=True to replace it."
STDOUT = "standard output"
"""The name of that in messages."""
TEMPORARY = ".swavg-partial"
"""Suffix of temporary names: a name that ends so is never a finished output."""


class Sink:
    """An open output file: writes everything or raises OutputError."""

    def __init__(self, path: str, fd: int, *, shown: str | None = None) -> None:
        self.path = path
        self._shown = path if shown is None else shown
        self._fd = fd
        self.written = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of ``data``."""
        view = memoryview(data)
        while view:
            try:
                count = os.write(self._fd, view)
            except OSError as error:
                gone = error.errno == errno.EPIPE and self._shown == STDOUT
                kind = ReaderGoneError if gone else OutputError
                raise kind(self._shown, _reason(error)) from None
            self.written += count
            view = view[count:]

    def sync(self) -> None:
        """Force the bytes to the disk; OutputError if the disk reports a failure."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
                raise OutputError(self._shown, _reason(error)) from None


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "cannot be written: the disk is full"
    if error.errno == errno.EPIPE:
        return "cannot be written: its reader went away"
    return f"cannot be written: {error.strerror}"


def destination(path: str | os.PathLike[str]) -> Path:
    """Where ``path`` really lies: a symbolic link is followed, so that it stays a link."""
    return Path(os.path.realpath(path) if os.path.islink(path) else path)


def is_stream(path: str | os.PathLike[str]) -> bool:
    """True for a FIFO, a device or a socket: written to, never replaced. OutputError for a path
    that none can have."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    except ValueError:
        shown = os.fsdecode(path).replace("\0", "\\0")
        raise OutputError(shown, "has a NUL byte in its name") from None
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def check_destination(
    path: str | os.PathLike[str], size: int, *, force: bool, folder: bool = False
) -> None:
    """Raise OutputError for what would fail later: an existing file, no folder, no space."""
    if is_stream(path):
        if folder:
            raise OutputError(path, "is no folder, which the output would be")
        return
    target = destination(path)
    if os.path.islink(target):
        raise OutputError(path, "is a link that leads back to itself")
    parent = target.parent
    if os.path.isdir(parent):
        try:
            os.lstat(target)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise OutputError(path, _reason(error)) from None
    if os.path.lexists(target) and not force:
        raise OutputExistsError(path, "exists already", hint=_FORCE)
    if os.path.isdir(target) != folder and os.path.exists(target):
        kind = "a folder" if os.path.isdir(target) else "a file"
        raise OutputError(path, f"is {kind}, which the output would not be")
    if not os.path.isdir(parent):
        raise OutputError(path, f"there is no folder '{parent}'", hint="Create it first.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(path, f"the folder '{parent}' is not writable")
    check_room(parent, size, shown=path)


def check_room(folder: str | os.PathLike[str], size: int, *, shown: str | os.PathLike[str]) -> None:
    """Raise OutputError if the disk of ``folder`` has less than ``size`` bytes free."""
    room = os.statvfs(folder)
    free = room.f_bavail * room.f_frsize
    if room.f_blocks and free < size:
        raise OutputError(shown, f"needs {size:,} bytes, and only {free:,} are free")


def _temporary(target: Path) -> Path:
    # The name stays under NAME_MAX however long the destination's own is.
    stem = os.fsdecode(os.fsencode(target.name)[:200])
    return target.with_name(f".{stem}.{os.urandom(4).hex()}{TEMPORARY}")


@contextlib.contextmanager
def new_file(
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    on_publish: Callable[[], object] = lambda: None,
) -> Iterator[Sink]:
    """A file that is published under ``path`` when the block ends without an exception.

    The finished bytes can be read at ``sink.path`` inside the block. A FIFO or device is written
    to directly. ``on_publish`` is called before the rename, from which there is no way back.
    Raises OutputError; the destination is then as it was.
    """
    if is_stream(path):
        with _opened(os.fspath(path), os.O_WRONLY, shown=os.fspath(path)) as sink:
            yield sink
        return
    target = destination(path)
    temporary = _temporary(target)
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        with _opened(str(temporary), flags, shown=os.fspath(path)) as sink:
            yield sink
            sink.sync()
        _keep_mode(target, temporary)
        on_publish()
        _move(temporary, target, force=force, shown=os.fspath(path))
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


@contextlib.contextmanager
def _opened(path: str, flags: int, *, shown: str) -> Iterator[Sink]:
    try:
        fd = os.open(path, flags | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise OutputError(shown, _reason(error)) from None
    try:
        yield Sink(path, fd, shown=shown)
    except BaseException:
        os.close(fd)
        raise
    try:
        os.close(fd)
    except OSError as error:
        raise OutputError(shown, _reason(error)) from None


@contextlib.contextmanager
def new_folder(
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    on_publish: Callable[[], object] = lambda: None,
) -> Iterator[Path]:
    """A folder that is published under ``path`` when the block ends without an exception.

    The block fills the folder that it is given (with :func:`write_into`). With ``force`` an
    existing folder is exchanged for the new one in one step, where the system can, and removed.
    ``on_publish`` is as for :func:`new_file`.
    """
    target = destination(path)
    temporary = _temporary(target)
    try:
        try:
            os.mkdir(temporary)
        except OSError as error:
            raise OutputError(path, _reason(error)) from None
        yield temporary
        _sync_folder(temporary)
        on_publish()
        _move(temporary, target, force=force, shown=os.fspath(path))
    finally:
        _remove(temporary)


@contextlib.contextmanager
def write_into(folder: Path, name: str, *, shown: str) -> Iterator[Sink]:
    """A new file in a folder that is not published yet: written and synced in place."""
    with _opened(str(folder / name), os.O_RDWR | os.O_CREAT | os.O_EXCL, shown=shown) as sink:
        yield sink
        sink.sync()


def _remove(folder: Path) -> None:
    import shutil

    try:
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        # Interrupted: what is left of it must still go.
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _keep_mode(target: Path, temporary: Path) -> None:
    with contextlib.suppress(OSError):
        os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))


_NOREPLACE, _EXCHANGE = 1, 2


def _move(temporary: Path, target: Path, *, force: bool, shown: str) -> None:
    try:
        if not force:
            _rename_new(temporary, target)
        elif temporary.is_dir() and os.path.lexists(target):
            if not target.is_dir():
                # Exchanged, it would end up under the temporary name: a lost file or device.
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
            _exchange(temporary, target)
        else:
            os.rename(temporary, target)
    except FileExistsError:
        problem = "was created by someone else meanwhile"
        raise OutputExistsError(shown, problem, hint=_FORCE) from None
    except OSError as error:
        raise OutputError(shown, _reason(error)) from None
    _sync_folder(target.parent)


def _rename_new(source: Path, target: Path) -> None:
    """Rename, and fail with FileExistsError if the target exists."""
    if _renameat2(source, target, _NOREPLACE):
        return
    if source.is_dir():
        # Only an empty folder is ever replaced by a rename, and only by a folder.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        os.rename(source, target)
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links (exFAT, some network ones): the gap between the look
        # and the rename is as small as it can be made.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        os.rename(source, target)


def _exchange(source: Path, target: Path) -> None:
    """Put the folder ``source`` in the place of ``target``; the old one ends up at ``source``."""
    if _renameat2(source, target, _EXCHANGE):
        return
    aside = _temporary(target)
    os.rename(target, aside)
    try:
        os.rename(source, target)
    except BaseException:
        os.rename(aside, target)
        raise
    _remove(aside)


def _renameat2(source: Path, target: Path, flag: int) -> bool:
    """Linux's renameat2; False where the system or the file system does not have it."""
    import ctypes

    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here = -100  # AT_FDCWD
    if call(here, os.fsencode(source), here, os.fsencode(target), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(target))


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
