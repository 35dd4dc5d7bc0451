"""What a file system is, has room for, and can do: its type, reservation, renaming, syncing."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from contextlib import suppress

from swavg.errors import OutputError

_RESERVING = {"bcachefs", "btrfs", "ext4", "f2fs", "overlay", "xfs"}
_LOCAL = _RESERVING | {"exfat", "ext2", "ext3", "jfs", "ntfs3", "ramfs", "tmpfs", "vfat", "zfs"}
_NOREPLACE, _EXCHANGE = 1, 2  # flags of renameat2
_HERE = -100  # AT_FDCWD
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def is_local(path: str) -> bool:
    """True if no other host can have files open in the folder ``path``; False if unknown."""
    return _type(path) in _LOCAL


def _type(path: str) -> str | None:
    """The type of the file system that ``path`` lies on, by the longest mount point above it."""
    try:
        real = os.path.realpath(path)
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    found, longest = None, 0
    for line in lines:
        fields = line.split(" ")
        # Spaces and the like are written as \040.
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= longest:
            found, longest = fields[fields.index("-") + 1], len(point)
    return found


def reserve(fd: int, size: int, path: str) -> None:
    """Make the file ``size`` bytes long, with all its space where that costs nothing. OSError.

    On a disk fallocate saves a tenth of the time of writing; memory it fills with zeros, and
    posix_fallocate writes them where a file system cannot reserve.
    """
    os.ftruncate(fd, size)
    fallocate = _system_call("fallocate64")
    if size and fallocate is not None and _type(os.path.dirname(path) or ".") in _RESERVING:
        import ctypes

        if fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size)):
            code = ctypes.get_errno()
            if code not in (*_UNSUPPORTED, errno.EINTR):
                raise OSError(code, os.strerror(code))


def check_room(folder: str, size: int, *, shown: str) -> None:
    """Raise OutputError if the disk of ``folder`` has less than ``size`` bytes free."""
    try:
        room = os.statvfs(folder)
    except OSError:
        # Then writing tells.
        return
    free = room.f_bavail * room.f_frsize
    if room.f_blocks and free < size:
        raise OutputError(shown, f"needs {size:,} bytes, and only {free:,} are free")


def fsync(fd: int) -> None:
    """Force what was written to the disk, where there is such a thing. OSError."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
            raise


def sync_folder(folder: str) -> None:
    """Force the names in ``folder`` to the disk. OSError if it reports a failure."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fsync(fd)
    finally:
        with suppress(OSError):
            os.close(fd)


def rename_new(source: str, target: str) -> None:
    """Rename; OSError, FileExistsError if the target exists. ``source`` may stay as a second name
    of a file."""
    if _renameat2(source, target, _NOREPLACE):
        return
    if not os.path.isdir(source):
        try:
            os.link(source, target)
            return
        except FileExistsError:
            raise
        except OSError:
            # A file system without hard links (exFAT, some network ones).
            pass
    # The gap between the look and the rename is as small as it can be made. Of folders only an
    # empty one is ever replaced by a rename, and only by a folder.
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    os.rename(source, target)


def exchange(source: str, target: str) -> bool:
    """Let two names change places in one step; False where that cannot be done. OSError."""
    return _renameat2(source, target, _EXCHANGE)


def _renameat2(source: str, target: str, flag: int) -> bool:
    """Linux's renameat2; False where the system or the file system does not have it."""
    import ctypes

    call = _system_call("renameat2")
    if call is None:
        return False
    if call(_HERE, os.fsencode(source), _HERE, os.fsencode(target), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), target)


def _system_call(name: str) -> Callable[..., int] | None:
    import ctypes

    try:
        call: Callable[..., int] = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (AttributeError, OSError, TypeError):
        return None
    return call
