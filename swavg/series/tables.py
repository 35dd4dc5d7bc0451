"""Metrics from a file that the user names: CSV with a header, JSON, or JSON lines.

Read line by line, and only rows of the series' own checkpoints are kept: the longest log that is
taken takes some seconds and few MiB.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BufferedReader
from typing import Literal

from swavg.errors import InputError
from swavg.formats.metrics import number
from swavg.series.inside import load_json, parse_json
from swavg.series.model import Snapshot, Unit, label, labels
from swavg.storage.paths import absolute, normal, open_binary, read_file

Kind = Literal["path", "step", "epoch"]

_COLUMNS: Mapping[Kind, tuple[str, ...]] = {
    "path": ("path", "name", "file", "checkpoint", "ckpt", "filename"),
    "step": ("step", "global_step", "steps", "iteration", "iter", "num_updates", "updates"),
    "epoch": ("epoch",),
}
"""Columns that say which checkpoint a row belongs to."""
_KEY_COLUMNS = {name for names in _COLUMNS.values() for name in names}
_MAX_LINES = 500_000
_MAX_CELLS = 5_000_000
_MAX_LINE = 1 << 20
_MAX_COLUMNS = 10_000


@dataclass(frozen=True, slots=True)
class _Table:
    columns: set[str]
    rows: Mapping[Kind, Mapping[str | float, Mapping[str, float]]]
    """Metrics by path, by step and by epoch, of those that were asked for."""
    spans: Mapping[Kind, tuple[float, float]]
    """From which step and epoch to which it counts."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Snapshots with the metrics of a file; ``useless`` says why it has none for any of them."""

    snapshots: list[Snapshot]
    notes: list[str]
    useless: str | None


def from_file(path: str, snapshots: Sequence[Snapshot], unit: Unit | None) -> Measured:
    """The snapshots with the metrics of the file at ``path``.

    A row belongs to a checkpoint by its path or name, or by its step or epoch, whichever column
    there is. Later rows of the same checkpoint add to earlier ones. InputError if the file is
    broken or too large, or seems to count from another number than the checkpoints.
    """
    table = _read(path, snapshots)
    kind = _kind(path, table.columns, snapshots, unit)
    metrics = [_metrics_of(table.rows[kind], snapshot, kind) for snapshot in snapshots]
    notes = []
    if kind == "step" and all(own is None for own in metrics):
        # Lightning logs from step 0 and counts steps done in the names: 1199 and step=1200.
        metrics = [_metrics_of(table.rows[kind], snapshot, kind, 1) for snapshot in snapshots]
        if any(own is not None for own in metrics):
            notes.append(f"{label(path)} counts steps from 0: one was added to each")
    lacking = [s.path for s, own in zip(snapshots, metrics, strict=True) if own is None]
    useless = None
    if lacking:
        counts = [count for each in snapshots if (count := _count_of(each, kind)) is not None]
        _check_beginning(path, kind, table.spans.get(kind), counts)
        missing = f"{label(path)} has no row for {labels(lacking)}"
        if len(lacking) == len(snapshots):
            missing += _contrast(kind, table.spans.get(kind), unit, snapshots)
            useless = missing
        notes.append(missing)
    measured = [
        replace(snapshot, metrics={**snapshot.metrics, **(own or {})})
        for snapshot, own in zip(snapshots, metrics, strict=True)
    ]
    return Measured(measured, notes, useless)


def _check_beginning(
    path: str, kind: Kind, span: tuple[float, float] | None, counts: Sequence[int]
) -> None:
    """InputError if a table seems to count from 0, as Keras does, and names from 1."""
    if span is None or not counts or span[0] != 0 or min(counts) < 1 or max(counts) != span[1] + 1:
        return
    raise InputError(
        path,
        f"counts {kind}s from 0 to {span[1]:g}, the checkpoints {min(counts)} to {max(counts)}: it"
        " may count from 0 what they count from 1",
        hint=f"Give it the numbers of the checkpoints in its column of {kind}s, or their names in a"
        " column 'path'.",
    )


def _contrast(
    kind: Kind, span: tuple[float, float] | None, unit: Unit | None, snapshots: Sequence[Snapshot]
) -> str:
    """What a table counts, and what the checkpoints count."""
    if span is None:
        return ""
    steps = [each.step for each in snapshots if each.step is not None]
    theirs = f"they {unit}s, {min(steps)} to {max(steps)}" if steps else "no step of them is known"
    return f": it counts {kind}s, {span[0]:g} to {span[1]:g}, and {theirs}"


def _metrics_of(
    rows: Mapping[str | float, Mapping[str, float]], snapshot: Snapshot, kind: Kind, before: int = 0
) -> Mapping[str, float] | None:
    return next((rows[key] for key in _keys_of(snapshot, kind, before) if key in rows), None)


def _keys_of(snapshot: Snapshot, kind: Kind, before: int = 0) -> Iterator[str | float]:
    """What may stand for the snapshot in a column; ``before`` is taken off its step."""
    if kind == "path":
        name = os.path.basename(normal(snapshot.path))
        yield from (normal(snapshot.path), absolute(snapshot.path), name)
        yield os.path.splitext(name)[0]
        return
    if (count := _count_of(snapshot, kind)) is not None:
        yield float(count - before)


def _count_of(snapshot: Snapshot, kind: Kind) -> int | None:
    """The step or epoch by which a row of a table is the snapshot's."""
    count = None if kind == "path" else snapshot.counts.get(kind, snapshot.counts.get("number"))
    return snapshot.step if count is None and "step" not in snapshot.counts else count


def _kind(path: str, columns: set[str], snapshots: Sequence[Snapshot], unit: Unit | None) -> Kind:
    """What the rows are told apart by."""
    kinds = [kind for kind, names in _COLUMNS.items() if not columns.isdisjoint(names)]
    if not kinds:
        raise InputError(
            path,
            "has no column that says which checkpoint a row belongs to",
            hint="Name one of its columns step, epoch or path.",
        )
    if kinds == ["step", "epoch"] and unit == "epoch":
        has_steps = any("step" in snapshot.counts for snapshot in snapshots)
        return "step" if has_steps else "epoch"
    return kinds[0]


def _read(path: str, snapshots: Sequence[Snapshot]) -> _Table:
    wanted = {
        kind: {key for snapshot in snapshots for n in (0, 1) for key in _keys_of(snapshot, kind, n)}
        for kind in _COLUMNS
    }
    columns: set[str] = set()
    names: dict[Kind, list[str]] = {kind: [] for kind in _COLUMNS}
    cells = 0
    rows: dict[Kind, dict[str | float, dict[str, float]]] = {kind: {} for kind in _COLUMNS}
    spans: dict[Kind, tuple[float, float]] = {}
    with open_binary(path) as source:
        for row in _rows(path, source):
            if not row.keys() <= columns:
                columns |= row.keys()
                if len(columns) > _MAX_COLUMNS:
                    raise InputError(path, f"has more than {_MAX_COLUMNS:,} columns")
                names = {k: [n for n in _COLUMNS[k] if n in columns] for k in _COLUMNS}
            cells += len(row)
            if cells > _MAX_CELLS:
                raise _too_large(path)
            for kind in _COLUMNS:
                key = _key(row, names[kind], kind) if names[kind] else None
                if isinstance(key, float):
                    low, high = spans.get(kind, (key, key))
                    spans[kind] = min(low, key), max(high, key)
                if key is not None and key in wanted[kind]:
                    rows[kind].setdefault(key, {}).update(_measured(row))
    if not columns:
        raise InputError(path, "has a header and no rows")
    return _Table(columns, rows, spans)


def _key(row: Mapping[str, object], names: Sequence[str], kind: Kind) -> str | float | None:
    value = next((cell for name in names if (cell := row.get(name)) not in (None, "")), None)
    if kind != "path":
        return number(value)
    return None if value is None else normal(str(value))


def _measured(row: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    for name, cell in row.items():
        if name not in _KEY_COLUMNS and (value := number(cell)) is not None:
            yield name, value


def _rows(path: str, source: BufferedReader) -> Iterator[Mapping[str, object]]:
    head = read_file(path, _MAX_LINE).removeprefix(b"\xef\xbb\xbf").lstrip()
    first = head.partition(b"\n")[0].decode(errors="replace")
    if not first:
        raise InputError(path, "is empty, where a table of metrics is expected")
    if first[0] not in "{[":
        return _csv_rows(path, first, _lines(path, source))
    try:
        row = parse_json(first)
    except ValueError:
        row = None
    if isinstance(row, dict) and "log_history" not in row:
        return _json_rows(path, _lines(path, source))
    return _whole_json(path)


def _lines(path: str, source: BufferedReader) -> Iterator[str]:
    """The lines of the file, with their ends."""
    done = 0
    for count in range(_MAX_LINES + 1):
        line = source.readline(_MAX_LINE)
        if not line:
            return
        if count == _MAX_LINES or len(line) == _MAX_LINE:
            break
        try:
            yield line.decode("utf-8-sig" if count == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(path, f"is no text: byte {done + error.start} is not UTF-8") from None
        done += len(line)
    raise _too_large(path)


def _too_large(path: str) -> InputError:
    return InputError(
        path,
        f"is more than a table of metrics: over {_MAX_LINES:,} lines, {_MAX_CELLS:,} values, or"
        " 1 MiB in a line",
        hint="Keep the rows of the checkpoints alone.",
    )


def _json_rows(path: str, lines: Iterator[str]) -> Iterator[Mapping[str, object]]:
    for count, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise InputError(path, f"line {count} is no JSON: {str(error)[:80]}") from None
        yield _checked(path, row)


def _whole_json(path: str) -> Iterator[Mapping[str, object]]:
    try:
        whole = load_json(path)
    except ValueError as error:
        raise InputError(
            path, f"is no JSON: {str(error)[:80]}", hint="Write one JSON object a line."
        ) from None
    if isinstance(whole, dict):
        # trainer_state.json of Hugging Face
        history = whole.get("log_history")
        whole = history if isinstance(history, list) else [whole]
    assert isinstance(whole, list)
    yield from (_checked(path, row) for row in whole)


def _checked(path: str, row: object) -> Mapping[str, object]:
    if not isinstance(row, dict):
        raise InputError(path, "is no list of JSON objects, one for each step")
    return row


def _csv_rows(path: str, header: str, lines: Iterator[str]) -> Iterator[Mapping[str, object]]:
    delimiter = next((mark for mark in ",\t;" if mark in header), ",")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    names: list[str] = []
    try:
        for row in filter(None, reader):
            if not names:
                names = [name.strip() for name in row]
                if len(set(names)) != len(names):
                    raise InputError(path, "has two columns of the same name")
            elif len(row) != len(names):
                raise InputError(
                    path, f"line {reader.line_num} has {len(row)} fields, the header {len(names)}"
                )
            else:
                yield dict(zip(names, map(str.strip, row), strict=True))
    except csv.Error as error:
        raise InputError(path, f"is no CSV: {error}") from None
