"""Outputs on their way to their names: written elsewhere, synced, renamed, or taken back."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from swavg.errors import OutputError
from swavg.storage.destination import Destination, destination, exists_error, is_empty_folder
from swavg.storage.filesystems import exchange, rename_new, reserve, sync_folder
from swavg.storage.sinks import FileSink, write_error
from swavg.storage.temporary import (
    Kept,
    Temporary,
    clear_partials,
    old_name,
    remove,
    temporary_name,
)


class Pending:
    """An output that has no name yet: its bytes lie at ``path``. ``kept``: some may lie there
    already. ``notes`` say what was done about leftovers of killed runs; ``warnings``, filled once
    it has its name, what went wrong then."""

    def __init__(self, output: Destination, path: str, *, kept: bool = False) -> None:
        self.output = output
        self.path = path
        self.kept = kept
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self._sinks: list[FileSink] = []
        self._folders: dict[str, None] = {}

    def create(self, name: str = "", size: int = 0) -> FileSink:
        """The file itself, or the file ``name`` in the folder (or in one below it, made if need
        be); ``size`` bytes are reserved where that is cheap. OutputError."""
        path = os.path.join(self.path, name) if name else self.path
        try:
            self._make_folders(os.path.dirname(name))
            sink = FileSink(path, self._open(path), self.output.path)
            self._sinks.append(sink)
            reserve(sink.fd, size, path)
        except OSError as error:
            raise write_error(self.output.path, error) from None
        return sink

    def _make_folders(self, name: str) -> None:
        if name and name not in self._folders:
            self._make_folders(os.path.dirname(name))
            os.makedirs(os.path.join(self.path, name), exist_ok=self.kept)
            self._folders[name] = None

    def _open(self, path: str) -> int:
        new = os.O_NOFOLLOW if self.kept else os.O_EXCL
        return os.open(path, os.O_RDWR | os.O_CREAT | new, 0o666)

    def sync(self) -> None:
        """Force all that was written to the disk, and close it. OutputError."""
        while self._sinks:
            self._sinks[-1].sync()
            self._sinks.pop().close()
        if self.output.folder:
            try:
                for name in reversed(self._folders):
                    sync_folder(os.path.join(self.path, name))
                sync_folder(self.path)
            except OSError as error:
                raise write_error(self.output.path, error) from None

    def abandon(self) -> None:
        for sink in self._sinks:
            with suppress(OutputError):
                sink.close()


class Renamed(Pending):
    """A pending output that is to be renamed to its destination; ``kept``: from what other runs
    wrote."""

    def __init__(self, output: Destination, *, kept: bool = False) -> None:
        self.target = destination(output.path)
        self._temporary = Kept(self.target, shared=False) if kept else Temporary(self.target)
        self._named = False
        # In the place of a folder in which nothing lay.
        self._in_empty = output.folder and is_empty_folder(self.target)
        self._old: str | None = None  # a second name of what was there
        super().__init__(output, self._temporary.path, kept=kept)

    def begin(self) -> None:
        if not self.kept:
            self.notes += clear_partials(self.target)
        try:
            self._temporary.create(folder=self.output.folder, shown=self.output.path)
        finally:
            self.path = self._temporary.path

    def _open(self, path: str) -> int:
        if path == self.path:
            return os.dup(self._temporary.fd)
        return super()._open(path)

    def keep_mode(self) -> None:
        """What is replaced gives its mode to the new one."""
        with suppress(OSError):
            os.chmod(self.path, stat.S_IMODE(os.stat(self.target).st_mode))

    def give_name(self, *, keep_old: bool) -> None:
        """The rename. ``keep_old``: so that :meth:`take_back` can undo it. OutputError."""
        try:
            if self.output.force and os.path.lexists(self.target):
                self._replace(keep_old)
            elif self._in_empty:
                # The system does so only while nothing is in it.
                os.rename(self.path, self.target)
            else:
                rename_new(self.path, self.target)
            self._named = True
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                problem = "was created by someone else meanwhile"
                raise exists_error(self.output.path, problem) from None
            raise write_error(self.output.path, error) from None

    def _replace(self, keep_old: bool) -> None:
        if os.path.isdir(self.target) != self.output.folder:
            # Exchanged, it would end up under the temporary name: a lost file or folder.
            code = errno.ENOTDIR if self.output.folder else errno.EISDIR
            raise OSError(code, os.strerror(code), self.target)
        if not (self.output.folder or keep_old):
            os.rename(self.path, self.target)
        elif exchange(self.path, self.target):
            self._old = self.path
        elif self.output.folder:
            old = old_name(self.target)
            os.rename(self.target, old)
            try:
                os.rename(self.path, self.target)
            except BaseException as error:
                try:
                    os.rename(old, self.target)
                except OSError:
                    raise OutputError(
                        self.output.path,
                        f"cannot be written: {error}",
                        hint=f"What it was before lies at {old}.",
                    ) from None
                raise
            self._old = old
        else:
            self._old = old_name(self.target)
            os.link(self.target, self._old)
            os.rename(self.path, self.target)

    def take_back(self) -> str:
        """Undo :meth:`give_name`; what could not be undone, in words."""
        if not self._named:
            return ""
        try:
            facts = os.lstat(self.target)
            if (facts.st_dev, facts.st_ino) != self._temporary.identity:
                raise FileExistsError(errno.EEXIST, "someone else replaced it", self.target)
            if self._old == self.path:
                if not exchange(self.path, self.target):
                    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
            elif not self.output.folder and self._old is None:
                os.unlink(self.target)
            else:
                if self.output.folder:
                    os.rename(self.target, self.path)
                if self._old is not None:
                    os.rename(self._old, self.target)
                elif self._in_empty:
                    os.mkdir(self.target)
                    os.chmod(self.target, stat.S_IMODE(os.stat(self.path).st_mode))
        except OSError as error:
            return self._keep_old(str(error.strerror))
        self._named, self._old = False, None
        return ""

    def _keep_old(self, reason: str) -> str:
        if self._old is None:
            return f"{self.output.path} has its name, which could not be taken back ({reason})."
        old, self._old = self._old, None
        if old == self.path:
            # Under that name the next run would clear it away.
            self.path = temporary_name(self.target)
            with suppress(OSError):
                os.rename(old, kept := old_name(self.target))
                old = kept
        return f"What {self.output.path} was before lies at {old} ({reason})."

    def end(self) -> None:
        """Remove what bears a temporary name."""
        self.abandon()
        for path in {self.path, self._old or self.path}:
            stays = self.kept and not self._named
            if not stays and remove(path) and self._named:
                self.warnings.append(f"{path} could not be removed; it is not needed any more")
        self._temporary.close()
