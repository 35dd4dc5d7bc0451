"""Where outputs are to appear, and what would keep them from it: known before any work."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from swavg.errors import OutputError, OutputExistsError
from swavg.storage.filesystems import check_room
from swavg.storage.sinks import write_error
from swavg.storage.stores import looks_like_url


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


def is_empty_folder(path: str) -> bool:
    """True for a folder in which nothing lies: one that is written takes its place."""
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is None
    except OSError:
        return False


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


def is_stored(path: str | None) -> bool:
    """Whether an output (None: standard output) goes to an object store, or is meant to."""
    return path is not None and looks_like_url(path)


def check_local(path: str | os.PathLike[str]) -> None:
    """Raise OutputError for a URL, where only paths of this machine are written to."""
    shown = os.fspath(path)
    if is_stored(shown):
        raise OutputError(
            shown,
            "this is written to paths of this machine only",
            hint="Give one, and upload the result.",
        )


def check_destination(
    path: str | os.PathLike[str], size: int, *, force: bool, folder: bool = False
) -> None:
    """Raise OutputError for what would fail later: an existing file, a folder that cannot be made,
    no space."""
    shown = os.fspath(path)
    check_local(shown)
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
        empty = folder and is_empty_folder(target)
        if not (force or empty):
            raise exists_error(shown, "exists already")
        if stat.S_ISDIR(mode) != folder:
            kind = "a file" if folder else "a folder"
            raise OutputError(shown, f"is {kind}, which the output would not be")
        if folder and (kept := _kept_in_place(target, empty=empty)):
            inner = os.path.join(shown, "averaged")
            raise OutputError(
                shown,
                f"{kept}: no new folder can take its place",
                hint=f"Give a name in it, such as {inner}.",
            )
    check_room(_place_for(parent(target), shown), size, shown=shown)


def _kept_in_place(folder: str, *, empty: bool) -> str:
    """Why an existing folder cannot be replaced, in words; empty if it can."""
    if os.path.ismount(folder):
        return "is a mount point"
    if empty and os.path.samefile(folder, "."):
        return "is the current folder"
    if empty and not os.access(parent(folder), os.W_OK | os.X_OK):
        return "lies in a folder that is not writable"
    return ""


def _place_for(folder: str, shown: str) -> str:
    """The folder, or the nearest one above it in which it would be made; OutputError where that
    cannot be."""
    try:
        os.path.abspath(folder)
    except OSError:
        raise OutputError(shown, "cannot be made: the current folder is gone") from None
    place = folder
    try:
        while True:
            try:
                mode = os.stat(place).st_mode
                break
            except FileNotFoundError:
                place = parent(place)
    except OSError as error:
        raise OutputError(shown, f"cannot be made: {error.strerror}") from None
    if not stat.S_ISDIR(mode):
        raise OutputError(shown, f"cannot be made: '{place}' is no folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(shown, f"cannot be made: the folder '{place}' is not writable")
    return place


def check_destinations(
    destinations: Sequence[Destination], sizes: Sequence[int], *, inside: str | None = None
) -> None:
    """:func:`check_destination` of outputs that appear together, of ``sizes`` bytes; ``inside``
    is as for ``publishing``. OutputError too if two would replace one."""
    if inside is not None and not os.path.isdir(destination(inside)):
        check_room(_place_for(destination(inside), inside), sum(sizes), shown=inside)
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
            folder = _place_for(parent(destination(output.path)), output.path)
            device = os.stat(folder).st_dev
            together[device] = together.get(device, 0) + size
            check_room(folder, together[device], shown=folder)
