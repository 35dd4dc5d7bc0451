"""Outputs under temporary names: locked while their writer lives, cleared away if it was killed."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from contextlib import suppress

from swavg.errors import OutputError
from swavg.storage.filesystems import is_local
from swavg.storage.sinks import write_error

TEMPORARY = ".swavg-partial"
"""Suffix of temporary names: a name that ends so is never a finished output."""
_OLD = ".old"


def temporary_name(target: str, mark: str = "") -> str:
    """A name beside ``target`` that nobody else uses."""
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{_stem(name)}.{os.urandom(4).hex()}{mark}{TEMPORARY}")


def kept_name(target: str) -> str:
    """The name beside ``target`` of what several runs make of it, one after the other or side by
    side."""
    folder, name = os.path.split(target.rstrip("/"))
    return os.path.join(folder, _stem(name) + TEMPORARY)


def old_name(target: str) -> str:
    """A second name for what ``target`` is now: never cleared away by another run."""
    return temporary_name(target, _OLD)


def _stem(name: str) -> str:
    # The name stays under NAME_MAX however long the destination's own is.
    return os.fsdecode(os.fsencode(name)[:200])


class Temporary:
    """A file or folder to be renamed to ``target``: ``path`` is its name until then, ``fd`` open
    and locked."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.path = temporary_name(target)
        self.fd = -1

    def create(self, *, folder: bool, shown: str) -> None:
        """Make it. OutputError."""
        try:
            while not self._create(folder):
                # Another run took it for abandoned before it was locked.
                self.path = temporary_name(self._target)
        except OSError as error:
            raise write_error(shown, error) from None

    def _create(self, folder: bool) -> bool:
        if folder:
            os.mkdir(self.path)
        flags = os.O_RDONLY | os.O_DIRECTORY if folder else os.O_RDWR | os.O_CREAT | os.O_EXCL
        self.fd = os.open(self.path, flags, 0o666)
        if _lock(self.fd) and _is_same(self.fd, self.path):
            return True
        self.close()
        return False

    @property
    def identity(self) -> tuple[int, int]:
        facts = os.fstat(self.fd)
        return facts.st_dev, facts.st_ino

    def close(self) -> None:
        """Give up the lock."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)


class Kept(Temporary):
    """A temporary that stays until a run has given it its name: ``shared`` by those that write
    parts of it, and make it. OutputError if there is none for the one that gives it its name."""

    def __init__(self, target: str, *, shared: bool) -> None:
        super().__init__(target)
        self.path, self._shared = kept_name(target), shared

    def create(self, *, folder: bool, shown: str) -> None:
        try:
            if folder and self._shared:
                os.makedirs(self.path, exist_ok=True)
            create = os.O_CREAT if self._shared else 0
            flags = os.O_RDONLY | os.O_DIRECTORY if folder else os.O_RDWR | create
            self.fd = os.open(self.path, flags | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise write_error(shown, error) from None
        # Another run may have given it its name before it was locked.
        if not (_lock(self.fd, shared=self._shared) and _is_same(self.fd, self.path)):
            self.close()
            doing = "given its name" if self._shared else "written"
            raise OutputError(shown, f"is being {doing} by another run", hint="Wait for its end.")


def _lock(fd: int, *, shared: bool = False) -> bool:
    """False if somebody else holds the lock. A file system without locks is not cleared either."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _is_same(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except OSError:
        return False


def clear_partials(target: str) -> list[str]:
    """Remove what killed runs left of earlier outputs of this name, where it is sure that they
    are gone; a note of each that was seen."""
    folder, name = os.path.split(target)
    ours = re.compile(
        re.escape(f".{_stem(name)}.") + rf"[0-9a-f]{{8}}({re.escape(_OLD)})?{re.escape(TEMPORARY)}"
    )
    try:
        names = sorted(found for found in os.listdir(folder or ".") if ours.fullmatch(found))
    except OSError:
        return []
    kept = kept_name(target)
    begun = (
        f"{kept} is what a run began and did not end; proceed=True goes on with it, or part= where"
        " it was made in parts"
    )
    notes = [begun] if os.path.lexists(kept) else []
    if names:
        local = is_local(folder or ".")
        notes += [_clear(os.path.join(folder, found), local=local) for found in names]
    return [note for note in notes if note]


def _clear(path: str, *, local: bool) -> str:
    if path.endswith(_OLD + TEMPORARY):
        return f"{path} is what was there before a run that replaced it and did not end well"
    left = f"{path} is unfinished; if no other run is writing it, remove it"
    if not local:
        return left
    try:
        # Without waiting for the writer of a FIFO.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return ""
    except OSError:
        return left
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mode = os.fstat(fd).st_mode
        if not _is_same(fd, path) or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return ""
        return left if remove(path) else f"removed {path}, which an earlier run had left"
    except BlockingIOError:
        return f"{path} is being written by another run"
    except OSError:
        return left
    finally:
        with suppress(OSError):
            os.close(fd)


def remove(path: str) -> bool:
    """Remove a file, or a folder with all that is in it; True if something is left."""
    if os.path.isdir(path) and not os.path.islink(path):
        import shutil

        try:
            shutil.rmtree(path, ignore_errors=True)
        except BaseException:
            # Interrupted: what is left of it must still go.
            shutil.rmtree(path, ignore_errors=True)
            raise
    else:
        with suppress(OSError):
            os.unlink(path)
    return os.path.lexists(path)
