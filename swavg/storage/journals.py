"""What runs that make one output together have done: a folder beside the output, with what they all
must agree on, and a journal for each."""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from swavg.errors import InputError, OutputError
from swavg.storage.filesystems import fsync, sync_folder
from swavg.storage.sinks import write_error
from swavg.storage.temporary import TEMPORARY, kept_name, remove

Facts = Mapping[str, object]
_PLAN = "plan.json"


def journals_of(target: str) -> str:
    """The folder of the journals of what is to appear at ``target``."""
    return kept_name(target).removesuffix(TEMPORARY) + ".parts" + TEMPORARY


class Journals:
    """The ``folder`` of the journals of an output."""

    def __init__(self, target: str) -> None:
        self.target, self.folder = target, journals_of(target)
        self._plan = os.path.join(self.folder, _PLAN)

    def facts(self) -> dict[str, object] | None:
        """What the runs agreed on; None if there was none. OutputError."""
        try:
            with open(self._plan, encoding="utf-8") as file:
                found = json.load(file)
            if not isinstance(found, dict):
                raise ValueError("no object")
            return found
        except FileNotFoundError:
            return None
        except OSError as error:
            raise write_error(self.folder, error) from None
        except ValueError:
            raise OutputError(
                self._plan, "is damaged", hint=f"Remove {self.folder} to begin anew."
            ) from None

    def agree(self, facts: Facts) -> Facts:
        """What the runs agree on: ``facts``, if this is the first of them. OutputError."""
        own = f"{self._plan}.{os.urandom(4).hex()}"
        try:
            os.makedirs(self.folder, exist_ok=True)
            with open(own, "x", encoding="utf-8") as file:
                json.dump(facts, file)
                file.flush()
                fsync(file.fileno())
            # Of several at once one is the first.
            with suppress(FileExistsError):
                os.link(own, self._plan)
            os.unlink(own)
            sync_folder(self.folder)
        except OSError as error:
            raise write_error(self.folder, error) from None
        return self.facts() or facts

    @contextmanager
    def open(self, part: int, digest: str) -> Iterator[Journal]:
        """The journal of a part, for this run alone. InputError if it is of another plan."""
        journal = Journal(os.path.join(self.folder, f"{part}.journal"), digest)
        try:
            journal.begin(self.target, part)
            yield journal
        finally:
            journal.close()

    def read(self, part: int, digest: str) -> Journal:
        """The journal of a part as it is; without a record if there is none."""
        journal = Journal(os.path.join(self.folder, f"{part}.journal"), digest)
        with suppress(FileNotFoundError), open(journal.path, "rb") as file:
            journal.take(file.read())
        return journal

    def recorded(self, count: int) -> bool:
        """Whether one of ``count`` parts has written anything down, and so to the output before.
        OutputError."""
        for part in range(1, count + 1):
            try:
                with open(os.path.join(self.folder, f"{part}.journal"), "rb") as file:
                    if file.readline() and file.read(1):
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

    def __init__(self, path: str, digest: str) -> None:
        self.path, self._digest = path, digest
        self.records: list[Facts] = []
        self.complete = False
        self._fd = -1

    def begin(self, shown: str, part: int) -> None:
        """Open it for more. OutputError, also if another run has it."""
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            with suppress(OSError):
                try:
                    fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise OutputError(
                        shown, f"part {part} is being written by another run"
                    ) from None
            size = os.fstat(self._fd).st_size
            kept = self.take(os.pread(self._fd, size, 0))
            # The last line may be torn: its writer was killed.
            os.ftruncate(self._fd, kept)
            if not kept:
                self._write({"plan": self._digest})
        except OSError as error:
            raise write_error(shown, error) from None

    def take(self, data: bytes) -> int:
        """Read its lines: how many bytes of them are whole. InputError for another plan's."""
        done = 0
        for line in data.splitlines(keepends=True):
            text = line[9:].removesuffix(b"\n")
            if not line.endswith(b"\n") or line[:8] != f"{zlib.crc32(text):08x}".encode():
                break
            value = json.loads(text)
            if not done and value != {"plan": self._digest}:
                raise InputError(
                    self.path, f"is of the plan {value.get('plan')}, and this one is {self._digest}"
                )
            if value == {"complete": True}:
                self.complete = True
            elif done:
                self.records.append(value)
            done += len(line)
        return done

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
            raise OSError(28, os.strerror(28))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
