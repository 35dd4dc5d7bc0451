"""Metrics from beside the checkpoints: what trainers log there, or a file that the user names."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from swavg.errors import InputError
from swavg.formats.files import open_input, read_exactly
from swavg.series.inside import number, read_inside, read_json
from swavg.series.model import Series, Snapshot, Unit, label, labels

_STEP = ("step", "global_step", "steps", "iteration", "iter", "num_updates", "updates")
_EPOCH = ("epoch",)
_PATH = ("path", "name", "file", "checkpoint", "ckpt", "filename")
_NOT_EVALUATION = re.compile(r".*(_runtime|_per_second|_mem\w*|_compilation_time)|eval_model_\w+")
_YAML_LINE = re.compile(r"\s*([A-Za-z_][\w./-]*)\s*:\s*([-+.\w]+)\s*(?:#.*)?")
_NOT_IN_YAML = {"epoch", "step", "lr", "save_time", "save_interval", "batch_size"}
_MAX_YAML = 1 << 20
_MAX_FILE = 256 << 20


def beside(snapshots: Sequence[Snapshot]) -> tuple[list[Snapshot], list[str]]:
    """The snapshots with what their trainers logged beside them, and notes. Never raises."""
    notes: list[str] = []
    logged = _trainer_states(snapshots)
    by_epoch: dict[str, dict[int, dict[str, float]]] = {}
    result = []
    for snapshot in snapshots:
        parent = os.path.dirname(os.path.abspath(snapshot.path))
        found: dict[str, float] = dict(_yaml(snapshot.path, notes))
        if (epoch := snapshot.counts.get("epoch")) is not None:
            if parent not in by_epoch:
                by_epoch[parent] = _espnet_stats(os.path.join(parent, "checkpoint.pth"))
            found |= by_epoch[parent].get(epoch, {})
        if (step := snapshot.counts.get("step")) is not None:
            found |= logged.get(parent, {}).get(step, {})
        # The name of a checkpoint belongs to it alone.
        result.append(replace(snapshot, metrics={**found, **snapshot.metrics}))
    return result, notes


def _espnet_stats(path: str) -> dict[int, dict[str, float]]:
    if not os.path.exists(path):
        return {}
    from swavg.series.inside_torch import espnet_stats

    return espnet_stats(path)


def _trainer_states(snapshots: Sequence[Snapshot]) -> dict[str, dict[int, dict[str, float]]]:
    """Hugging Face: what the newest checkpoint folder of each run has logged, by step."""
    newest: dict[str, tuple[int, str]] = {}
    for snapshot in snapshots:
        path = os.path.join(snapshot.path, "trainer_state.json")
        parent = os.path.dirname(os.path.abspath(snapshot.path))
        step = snapshot.counts.get("step", -1)
        if step > newest.get(parent, (-2, ""))[0] and os.path.isfile(path):
            newest[parent] = (step, path)
    return {parent: _log_history(read_json(path)) for parent, (_, path) in newest.items()}


def _log_history(state: Any) -> dict[int, dict[str, float]]:
    entries = state.get("log_history") if isinstance(state, Mapping) else None
    found: dict[int, dict[str, float]] = {}
    for entry in entries if isinstance(entries, list) else ():
        step = entry.get("step") if isinstance(entry, Mapping) else None
        if type(step) is not int:
            continue
        for name, value in entry.items():
            measured = name.startswith("eval_") and not _NOT_EVALUATION.fullmatch(name)
            if measured and (value := number(value)) is not None:
                found.setdefault(step, {})[name] = value
    return found


def _yaml(path: str, notes: list[str]) -> Iterator[tuple[str, float]]:
    """wenet: the ``key: number`` lines of ``12.yaml`` beside ``12.pt``."""
    stem, suffix = os.path.splitext(path)
    beside = f"{stem}.yaml"
    if suffix not in (".pt", ".pth", ".ckpt", ".safetensors") or not os.path.isfile(beside):
        return
    try:
        with open_input(beside) as (fd, file):
            text = bytes(read_exactly(fd, file, 0, min(file.size, _MAX_YAML))).decode()
    except (InputError, ValueError):
        notes.append(f"{label(beside)} could not be read for metrics")
        return
    for line in text.splitlines():
        match = _YAML_LINE.fullmatch(line)
        if match and match[1] not in _NOT_IN_YAML and (value := number(match[2])) is not None:
            yield match[1], value


def with_inner_metrics(series: Series, metric: str | None = None) -> Series:
    """The series with the metrics that its checkpoints hold: opens those that lack ``metric``
    (None: all of them). What cannot be opened is passed over."""
    snapshots = []
    for snapshot in series.snapshots:
        if metric is None or metric not in snapshot.metrics:
            try:
                inner = read_inside(snapshot.path).metrics
            except InputError:
                inner = {}
            snapshot = replace(snapshot, metrics={**inner, **snapshot.metrics})
        snapshots.append(snapshot)
    return replace(series, snapshots=tuple(snapshots))


def from_file(
    path: str, snapshots: Sequence[Snapshot], unit: Unit | None
) -> tuple[list[Snapshot], list[str]]:
    """The snapshots with the metrics of a CSV (with a header), JSON or JSON-lines file.

    A row belongs to a checkpoint by its path or name, or by its step or epoch, whichever column
    there is. Later rows of the same checkpoint add to earlier ones. InputError if the file is
    broken.
    """
    rows = _read_rows(path)
    columns = {name for row in rows for name in row}
    keys = _keys(path, columns, snapshots, unit)
    by_key: dict[str, dict[str, float]] = {}
    others = {*_STEP, *_EPOCH, *_PATH}
    for row in rows:
        for key in _row_keys(row, keys):
            by_key.setdefault(key, {}).update(
                (name, value)
                for name, cell in row.items()
                if name not in others and (value := number(cell)) is not None
            )
    found, notes = [], []
    for snapshot in snapshots:
        found.append([by_key[key] for key in _own_keys(snapshot, keys, 0) if key in by_key])
    if not any(found) and keys[0] in _STEP:
        # Lightning logs from step 0 and counts steps done in the names: 1199 and step=1200.
        found = [
            [by_key[key] for key in _own_keys(snapshot, keys, 1) if key in by_key]
            for snapshot in snapshots
        ]
        if any(found):
            notes.append(f"{label(path)} counts steps from 0: its 99 was taken for step 100")
    lacking = [s.path for s, got in zip(snapshots, found, strict=True) if not got]
    if lacking:
        notes.append(f"{label(path)} has no row for {labels(lacking)}")
    return [
        replace(snapshot, metrics={**snapshot.metrics, **(got[0] if got else {})})
        for snapshot, got in zip(snapshots, found, strict=True)
    ], notes


def _keys(
    path: str, columns: set[str], snapshots: Sequence[Snapshot], unit: Unit | None
) -> tuple[str, ...]:
    """The columns that say which checkpoint a row belongs to."""
    names = [name for name in _PATH if name in columns]
    if names:
        return tuple(names)
    steps = [name for name in _STEP if name in columns]
    epochs = [name for name in _EPOCH if name in columns]
    has = {kind for snapshot in snapshots for kind in snapshot.counts}
    if steps and (unit != "epoch" or "step" in has or not epochs):
        return tuple(steps)
    if epochs:
        return tuple(epochs)
    raise InputError(
        path,
        "has no column that says which checkpoint a row belongs to",
        hint="Name one of its columns step, epoch or path.",
    )


def _row_keys(row: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[str]:
    for key in keys:
        value = row.get(key)
        if value is None or value == "":
            continue
        if key in _PATH:
            yield os.path.normpath(str(value))
        elif (count := number(value)) is not None:
            yield f"{count:.17g}"
        return


def _own_keys(snapshot: Snapshot, keys: tuple[str, ...], before: int) -> Iterator[str]:
    if keys[0] in _PATH:
        name = os.path.basename(os.path.normpath(snapshot.path))
        yield from (os.path.normpath(snapshot.path), os.path.abspath(snapshot.path), name)
        yield os.path.splitext(name)[0]
        return
    unit: Unit = "epoch" if keys[0] in _EPOCH else "step"
    count = snapshot.counts.get(unit, snapshot.counts.get("number"))
    if count is None and "step" not in snapshot.counts:
        count = snapshot.step
    if count is not None:
        yield f"{float(count - before):.17g}"


def _read_rows(path: str) -> list[dict[str, Any]]:
    with open_input(path) as (fd, file):
        if file.size > _MAX_FILE:
            raise InputError(path, f"has {file.size:,} bytes, more than a table of metrics")
        data = bytes(read_exactly(fd, file, 0, file.size))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(path, f"is no text: byte {error.start} is not UTF-8") from None
    if not text.strip():
        raise InputError(path, "is empty, where a table of metrics is expected")
    rows = _json_rows(path, text) if text.lstrip()[0] in "{[" else _csv_rows(path, text)
    if not rows:
        raise InputError(path, "has a header and no rows")
    return rows


def _json_rows(path: str, text: str) -> list[dict[str, Any]]:
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, dict):
        # trainer_state.json of Hugging Face
        history = whole.get("log_history")
        whole = history if isinstance(history, list) else [whole]
    if whole is None:
        whole = [
            _json_line(path, number, line)
            for number, line in enumerate(text.splitlines(), 1)
            if line.strip()
        ]
    if not isinstance(whole, list) or not all(isinstance(row, dict) for row in whole):
        raise InputError(path, "is no list of JSON objects, one for each step")
    return whole


def _json_line(path: str, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"line {number} is no JSON: {str(error)[:80]}") from None


def _csv_rows(path: str, text: str) -> list[dict[str, Any]]:
    header = text.lstrip("\n").partition("\n")[0]
    delimiter = next((mark for mark in ",\t;" if mark in header), ",")
    try:
        reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
        lines = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise InputError(path, f"is no CSV: {error}") from None
    names = [name.strip() for name in lines[0][1]]
    if len(set(names)) != len(names):
        raise InputError(path, "has two columns of the same name")
    rows = []
    for line, row in lines[1:]:
        if len(row) != len(names):
            raise InputError(path, f"line {line} has {len(row)} fields, the header {len(names)}")
        rows.append({name: cell.strip() for name, cell in zip(names, row, strict=True)})
    return rows
