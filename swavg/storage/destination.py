"""Where outputs are to appear, and what would keep them from it: known before any work."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from swavg.errors import OutputError, OutputExistsError
from swavg.storage.filesystems import check_room
from swavg.storage.sinks import write_error


@dataclass(frozen=True, slots=True)
class Destination:
    """What is to appear: a file or a ``folder`` at ``path``. ``force``: replacing what is there."""

    path: str
    folder: bool
    force: bool


def exists_error(path: str, problem: str) -> OutputError:
    """What is there may not be replaced."""
    return OutputExistsError(path, problem, hint="Use force=True to replace it.")


def destination(path: str | os.PathLike[str]) -> str:
    """Where ``path`` really lies: a symbolic link is followed, so that it stays a link."""
    shown = os.fspath(path)
    try:
        return os.path.realpath(shown) if os.path.islink(shown) else shown
    except OSError as error:
        raise write_error(shown, error) from None


def parent(path: str) -> str:
    """The folder that ``path`` lies in."""
    return os.path.dirname(path.rstrip("/")) or ("/" if path.startswith("/") else ".")


def is_stream(path: str | os.PathLike[str]) -> bool:
    """True for a FIFO, a device or a socket: written to, never replaced. OutputError for a path
    that none can have."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    except ValueError:
        raise OutputError(
            os.fspath(path).replace("\0", "\\0"), "has a NUL byte in its name"
        ) from None
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def check_destination(
    path: str | os.PathLike[str], size: int, *, force: bool, folder: bool = False
) -> None:
    """Raise OutputError for what would fail later: an existing file, no folder, no space."""
    shown = os.fspath(path)
    if is_stream(shown):
        if folder:
            raise OutputError(shown, "is no folder, which the output would be")
        return
    target = destination(shown)
    try:
        mode = os.lstat(target).st_mode
    except OSError as error:
        # A name that is too long, or a folder that may not be searched; not one that is not there.
        if not isinstance(error, FileNotFoundError) and os.path.isdir(parent(target)):
            raise write_error(shown, error) from None
    else:
        if stat.S_ISLNK(mode):
            raise OutputError(shown, "is a link that leads back to itself")
        if not force:
            raise exists_error(shown, "exists already")
        if stat.S_ISDIR(mode) != folder:
            kind = "a file" if folder else "a folder"
            raise OutputError(shown, f"is {kind}, which the output would not be")
    _check_folder(parent(target), shown)
    check_room(parent(target), size, shown=shown)


def _check_folder(folder: str, shown: str) -> None:
    try:
        os.path.abspath(folder)
    except OSError:
        raise OutputError(shown, "cannot be written: the current folder is gone") from None
    if not os.path.isdir(folder):
        raise OutputError(shown, f"there is no folder '{folder}'", hint="Create it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(shown, f"the folder '{folder}' is not writable")


def check_destinations(
    destinations: Sequence[Destination], sizes: Sequence[int], *, inside: str | None = None
) -> None:
    """:func:`check_destination` of outputs that appear together, of ``sizes`` bytes; ``inside``
    is as for ``publishing``. OutputError too if two would replace one."""
    if inside is not None and not os.path.isdir(destination(inside)):
        _check_new_folder(destination(inside), sum(sizes), inside)
        return
    for output, size in zip(destinations, sizes, strict=True):
        if len(destinations) > 1 and is_stream(output.path):
            raise OutputError(output.path, "is a pipe or device, which can only be a single output")
        check_destination(output.path, size, force=output.force, folder=output.folder)
    places = set()
    for output in destinations:
        place = os.path.realpath(output.path)
        if place in places:
            raise OutputError(output.path, "is where another output goes already")
        places.add(place)
    together: dict[int, int] = {}
    for output, size in zip(destinations, sizes, strict=True):
        if not is_stream(output.path):
            folder = parent(destination(output.path))
            device = os.stat(folder).st_dev
            together[device] = together.get(device, 0) + size
            check_room(folder, together[device], shown=folder)


def _check_new_folder(target: str, size: int, shown: str) -> None:
    """Raise OutputError where the folder could not be made, with those above it."""
    try:
        wanted = place = os.path.abspath(target)
    except OSError:
        raise OutputError(shown, "cannot be made: the current folder is gone") from None
    try:
        while True:
            try:
                mode = os.stat(place).st_mode
                break
            except FileNotFoundError:
                place = os.path.dirname(place)
        if not stat.S_ISDIR(mode):
            code = errno.EEXIST if place == wanted else errno.ENOTDIR
        else:
            code = 0 if os.access(place, os.W_OK | os.X_OK) else errno.EACCES
    except OSError as error:
        code = error.errno or errno.EIO
    if code:
        raise OutputError(shown, f"cannot be made: {os.strerror(code)}")
    check_room(place, size, shown=shown)
