"""The csv of a survey: written a row at a time, so that an interrupted one goes on from there.

The first line is a comment with what the values depend on, as JSON; a table that was made otherwise
is not continued. While it grows it lies beside its destination under a name that says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from swavg.errors import OutputError, OutputExistsError
from swavg.storage.destination import check_destination, destination
from swavg.storage.publish import new_file

PARTIAL = ".partial"
"""Suffix of an unfinished table."""

_HEAD = "# swavg "


class Table:
    """An unfinished csv, open and locked. ``rows`` are the texts of its whole rows, in order."""

    def __init__(self, path: Path, fd: int, rows: list[str]) -> None:
        self.path = path
        self._fd = fd
        self.rows = rows

    def append(self, row: str) -> None:
        """Add a row; it outlives this process when this returns."""
        _write(self._fd, self.path, row + "\n")
        self.rows.append(row)

    def foreign(self, number: int) -> OutputError:
        """The error for a row, counted from 1, that is of something else."""
        return OutputError(
            self.path,
            f"row {number} is not the one that belongs there: the file was changed",
            hint="Use anew=True to evaluate everything again, or give csv= another path.",
        )


def _heading(cache_key: Mapping[str, object], columns: Sequence[str]) -> str:
    """The lines above the rows."""
    text = json.dumps(cache_key, ensure_ascii=True, separators=(", ", ": "))
    return f"{_HEAD}{text}\n{','.join(columns)}\n"


@contextlib.contextmanager
def opened(
    path: str | os.PathLike[str],
    cache_key: Mapping[str, object],
    columns: Sequence[str],
    *,
    anew: bool = False,
    force: bool = False,
) -> Iterator[Table]:
    """The unfinished table for ``path``, with the rows that a finished or interrupted run with the
    same ``cache_key`` left; without them if ``anew``.

    Raises OutputError if it is being written, or if there is one that was made otherwise, which
    ``force`` gives up.
    """
    partial = Path(f"{destination(path)}{PARTIAL}")
    head = _heading(cache_key, columns)
    try:
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise OutputError(partial, f"cannot be written: {error.strerror}") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                partial,
                "is being written by another run",
                hint="Wait for it, or give csv= another path.",
            ) from None
        with os.fdopen(os.dup(fd), "rb") as file:
            found = file.read()
        if anew or not found:
            # What is finished need not be computed again.
            rows = [] if anew else finished_rows(path, cache_key, columns) or []
        else:
            rows = _rows(partial, found, head, cache_key, force)
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        _write(fd, partial, head + "".join(f"{row}\n" for row in rows))
        table = Table(partial, fd, rows)
        try:
            yield table
        finally:
            if not table.rows:
                # Nothing to go on from.
                discard(table)
    finally:
        os.close(fd)


def finished_rows(
    path: str | os.PathLike[str], cache_key: Mapping[str, object], columns: Sequence[str]
) -> list[str] | None:
    """The rows of a finished table made with this ``cache_key``; None if there is no such file."""
    target = Path(destination(path))
    try:
        found = target.read_bytes()
    except OSError:
        return None
    try:
        return _rows(target, found, _heading(cache_key, columns), cache_key, False)
    except OutputError:
        return None


def check_place(
    path: str | os.PathLike[str], cache_key: Mapping[str, object], size: int, *, force: bool
) -> None:
    """:func:`swavg.storage.destination.check_destination`, which says of a table that is there what
    it was made of otherwise."""
    try:
        check_destination(path, size, force=force)
    except OutputExistsError as error:
        target = Path(destination(path))
        found = target.read_bytes() if target.is_file() else b""
        differing = _differing(found, cache_key)
        if not differing:
            raise
        problem = f"{error.problem}, of a run that differs in {', '.join(differing)}"
        hint = "Give csv= another path, or force=True to replace it."
        raise OutputExistsError(path, problem, hint=hint) from None


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether a file is such a csv, finished."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_HEAD)) == _HEAD.encode()
    except OSError:
        return False


def left_tables(
    path: str | os.PathLike[str], columns: Sequence[str]
) -> Iterator[tuple[dict[str, object], list[str]]]:
    """The finished and the unfinished table for ``path``, where there are any: what each depends
    on, and its rows. Of a file that is no table with these ``columns`` both are empty."""
    target = destination(path)
    for name in (target, f"{target}{PARTIAL}"):
        try:
            found = Path(name).read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise OutputError(name, f"cannot be read: {error.strerror}") from None
        key = _cache_key_in(found) or {}
        try:
            rows = _rows(Path(name), found, _heading(key, columns), key, False)
        except OutputError:
            key, rows = {}, []
        yield key, rows


def publish(table: Table, path: str | os.PathLike[str], *, force: bool) -> None:
    """Put the table, whole, under ``path``."""
    with new_file(path, force=force) as sink:
        sink.write(table.path.read_bytes())


def discard(table: Table) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(table.path)


def _write(fd: int, path: Path, text: str) -> None:
    view = memoryview(text.encode())
    while view:
        try:
            view = view[os.write(fd, view) :]
        except OSError as error:
            raise OutputError(path, f"cannot be written: {error.strerror}") from None


def _rows(
    path: Path, found: bytes, head: str, cache_key: Mapping[str, object], force: bool
) -> list[str]:
    """The whole rows of a table; a last line without its end was cut short, and is dropped."""
    if found.startswith(head.encode()):
        *rows, _ = found[len(head.encode()) :].decode(errors="replace").split("\n")
        # A crash of the machine may leave zeros where the last rows were.
        whole = next((i for i, row in enumerate(rows) if "\0" in row), len(rows))
        return rows[:whole]
    cut_short = b"\n" not in found and found.startswith(_HEAD.encode())
    if force or cut_short or head.encode().startswith(found):
        return []
    raise OutputError(
        path,
        f"was left by a run that differs in {_difference(found, cache_key)}",
        hint="Give the same options to go on with it, force=True to begin anew, or csv= another"
        " path.",
    )


def _cache_key_in(found: bytes) -> dict[str, object] | None:
    """None if that is no table of ours."""
    line = found.partition(b"\n")[0].decode(errors="replace")
    try:
        before = json.loads(line.removeprefix(_HEAD)) if line.startswith(_HEAD) else None
    except ValueError:
        return None
    return before if isinstance(before, dict) else None


def _difference(found: bytes, cache_key: Mapping[str, object]) -> str:
    if _cache_key_in(found) is None:
        return "everything: it is no table of swavg"
    return ", ".join(_differing(found, cache_key)) or "its columns"


def _differing(found: bytes, cache_key: Mapping[str, object]) -> list[str]:
    """The names of what two tables depend on otherwise; none for what is no table."""
    before = _cache_key_in(found)
    if before is None:
        return []
    wanted = json.loads(json.dumps(cache_key))
    names = [name for name in {**before, **wanted} if before.get(name) != wanted.get(name)]
    return [f"'{name}'" for name in names]
