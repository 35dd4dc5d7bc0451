"""What runs that make one output together have done: a folder beside the output, with what they all
must agree on, and a journal for each."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import BinaryIO

from swavg.errors import InputError, OutputError
from swavg.storage.filesystems import fsync, sync_folder
from swavg.storage.sinks import write_error
from swavg.storage.temporary import TEMPORARY, kept_name, remove

Facts = Mapping[str, object]
MOST_PARTS = 100_000
"""Of an output."""
_PLAN = "plan.json"
_LARGEST = 256 << 20
"""Bytes of what the runs agreed on, or of a line of a journal: more is none of ours."""


def journals_of(target: str) -> str:
    """The folder of the journals of what is to appear at ``target``."""
    return kept_name(target).removesuffix(TEMPORARY) + ".parts" + TEMPORARY


class Journals:
    """The ``folder`` of the journals of an output."""

    def __init__(self, target: str) -> None:
        self.target, self.folder = target, journals_of(target)
        self._plan = os.path.join(self.folder, _PLAN)

    @property
    def anew(self) -> str:
        """The command that removes what there is of the output."""
        both = (self.folder, kept_name(self.target))
        return shlex.join(["rm", "-r", *filter(os.path.lexists, both)])

    def damaged(self, path: str) -> OutputError:
        """The error for what no run has written."""
        return OutputError(path, "is damaged", hint=f"Begin anew: {self.anew}")

    def facts(self) -> dict[str, object] | None:
        """What the runs agreed on; None if there was none. OutputError."""
        try:
            with _opened(self._plan) as file:
                text = file.read(_LARGEST)
            found = json.loads(text)
            if not isinstance(found, dict) or type(parts := found.get("parts")) is not int:
                raise ValueError("another object")
            if not 1 <= parts <= MOST_PARTS:
                raise ValueError("no number of parts")
            return found
        except FileNotFoundError:
            return None
        except OSError as error:
            raise write_error(self.folder, error) from None
        except (ValueError, RecursionError):
            raise self.damaged(self._plan) from None

    def agree(self, facts: Facts) -> Facts:
        """What the runs agree on: ``facts``, if this is the first of them. OutputError."""
        if (agreed := self.facts()) is not None:
            return agreed
        own = f"{self._plan}.{os.urandom(4).hex()}"
        try:
            os.makedirs(self.folder, exist_ok=True)
            try:
                with open(own, "x", encoding="utf-8") as file:
                    json.dump(facts, file)
                    file.flush()
                    fsync(file.fileno())
                # Of several at once one is the first.
                with suppress(FileExistsError):
                    os.link(own, self._plan)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(own)
            sync_folder(self.folder)
        except OSError as error:
            raise write_error(self.folder, error) from None
        return self.facts() or facts

    def path(self, part: int) -> str:
        """Where the journal of a part lies."""
        return os.path.join(self.folder, f"{part}.journal")

    @contextmanager
    def open(self, part: int, digest: str) -> Iterator[Journal]:
        """The journal of a part, for this run alone. InputError if it is of another plan."""
        journal = Journal(self, part, digest)
        try:
            journal.begin()
            yield journal
        finally:
            journal.close()

    def read(self, part: int, digest: str) -> Journal:
        """The journal of a part as it is; without a record if there is none. OutputError."""
        journal = Journal(self, part, digest)
        try:
            with _opened(journal.path) as file:
                journal.take(file)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise write_error(journal.path, error) from None
        return journal

    def recorded(self, count: int) -> bool:
        """Whether one of ``count`` parts has written anything down, and so to the output before.
        OutputError."""
        for part in range(1, count + 1):
            try:
                with _opened(self.path(part)) as file:
                    if file.readline(_LARGEST) and file.read(1):
                        return True
            except FileNotFoundError:
                continue
            except OSError as error:
                raise write_error(self.folder, error) from None
        return False

    def remove(self) -> None:
        remove(self.folder)


class Journal:
    """``records`` of one run, in the order in which they were written; ``complete``: nothing is
    missing, and all of it is on the disk. A line each: a checksum, and JSON."""

    def __init__(self, journals: Journals, part: int, digest: str) -> None:
        self.path = journals.path(part)
        self._journals, self._part, self._digest = journals, part, digest
        self.records: list[Facts] = []
        self.complete = False
        self._fd = -1

    def begin(self) -> None:
        """Open it for more. OutputError, also if another run has it."""
        shown = self._journals.target
        try:
            self._fd = _open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            with suppress(OSError):
                try:
                    fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise OutputError(
                        shown, f"part {self._part} is being written by another run"
                    ) from None
            with open(os.dup(self._fd), "rb") as file:
                kept = self.take(file)
            # The last line may be torn: its writer was killed.
            os.ftruncate(self._fd, kept)
            if not kept:
                self._write({"plan": self._digest})
        except OSError as error:
            raise write_error(shown, error) from None

    def take(self, file: BinaryIO) -> int:
        """Read its lines: how many bytes of them are whole. InputError for another plan's,
        OutputError for what no run has written."""
        done = 0
        while line := file.readline(_LARGEST):
            text = line[9:].removesuffix(b"\n")
            if not line.endswith(b"\n") or line[:8] != f"{zlib.crc32(text):08x}".encode():
                break
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                raise self.damaged() from None
            if not isinstance(value, dict):
                raise self.damaged()
            if not done and value != {"plan": self._digest}:
                raise InputError(
                    self.path,
                    f"is of the plan {value.get('plan')}, and this one is {self._digest}",
                    hint=f"Begin anew: {self._journals.anew}",
                )
            if value == {"complete": True}:
                self.complete = True
            elif done:
                self.records.append(value)
            done += len(line)
        return done

    def damaged(self) -> OutputError:
        """The error for a line that no run has written."""
        return self._journals.damaged(self.path)

    def add(self, record: Facts) -> None:
        """Write down what was done. OutputError."""
        try:
            self._write(record)
        except OSError as error:
            raise write_error(self.path, error) from None

    def end(self) -> None:
        """All is done, and on the disk. OutputError."""
        self.add({"complete": True})
        try:
            fsync(self._fd)
        except OSError as error:
            raise write_error(self.path, error) from None

    def _write(self, value: Facts) -> None:
        text = json.dumps(value, separators=(",", ":")).encode()
        line = f"{zlib.crc32(text):08x} ".encode() + text + b"\n"
        if os.write(self._fd, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _opened(path: str) -> BinaryIO:
    return open(_open(path, os.O_RDONLY), "rb")


def _open(path: str, flags: int) -> int:
    """Open a regular file. OSError for what else may lie there: a link to an input, a FIFO."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return fd
