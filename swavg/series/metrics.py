"""Metrics from beside the checkpoints, where trainers log them, and from inside them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from swavg.errors import InputError
from swavg.formats.metrics import number
from swavg.series.inside import (
    averages_inputs,
    metrics_by_epoch,
    read_inside,
    read_json,
    read_scalars,
)
from swavg.series.model import Series, Snapshot, label
from swavg.storage.paths import absolute, exists, is_file, read_file

_NOT_EVALUATION = re.compile(r".*(_runtime|_per_second|_mem\w*|_compilation_time)|eval_model_\w+")
_YAML_LINE = re.compile(r"\s*([A-Za-z_][\w./-]*)\s*:\s*([-+.\w]+)\s*(?:#.*)?")
_NOT_IN_YAML = {"epoch", "step", "lr", "save_time", "save_interval", "batch_size"}
_MAX_YAML = 1 << 20


def beside(snapshots: Sequence[Snapshot]) -> tuple[list[Snapshot], list[str]]:
    """The snapshots with what their trainers logged beside them, and notes. Never raises."""
    notes: list[str] = []
    logged = _trainer_states(snapshots)
    by_epoch: dict[str, dict[int, dict[str, float]]] = {}
    result = []
    for snapshot in snapshots:
        parent = os.path.dirname(absolute(snapshot.path))
        found: dict[str, float] = dict(_yaml(snapshot.path, notes))
        if (epoch := snapshot.counts.get("epoch")) is not None:
            if parent not in by_epoch:
                by_epoch[parent] = _espnet(os.path.join(parent, "checkpoint.pth"))
            found |= by_epoch[parent].get(epoch, {})
        if (step := snapshot.counts.get("step")) is not None:
            found |= logged.get(parent, {}).get(step, {})
        if found and averages_inputs(snapshot.path):
            found = {}
        # The name of a checkpoint belongs to it alone.
        result.append(replace(snapshot, metrics={**found, **snapshot.metrics}))
    return result, notes


def _espnet(path: str) -> dict[int, dict[str, float]]:
    try:
        return metrics_by_epoch(read_scalars(path)[0]) if exists(path) else {}
    except InputError:
        return {}


def _trainer_states(snapshots: Sequence[Snapshot]) -> dict[str, dict[int, dict[str, float]]]:
    """Hugging Face: what the newest checkpoint folder of each run has logged, by step."""
    newest: dict[str, tuple[int, str]] = {}
    for snapshot in snapshots:
        path = os.path.join(snapshot.path, "trainer_state.json")
        parent = os.path.dirname(absolute(snapshot.path))
        step = snapshot.counts.get("step", -1)
        if step > newest.get(parent, (-2, ""))[0] and is_file(path):
            newest[parent] = (step, path)
    return {parent: _log_history(read_json(path)) for parent, (_, path) in newest.items()}


def _log_history(state: object) -> dict[int, dict[str, float]]:
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
    if suffix not in (".pt", ".pth", ".ckpt", ".safetensors") or not is_file(beside):
        return
    try:
        text = read_file(beside, _MAX_YAML).decode()
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

    def opened(snapshot: Snapshot) -> Snapshot:
        if snapshot.opened or (metric is not None and metric in snapshot.metrics):
            return snapshot
        inner: Mapping[str, float] = {}
        with suppress(InputError):
            inner = read_inside(snapshot.path, series.shared).metrics
        return replace(snapshot, metrics={**inner, **snapshot.metrics}, opened=True)

    return replace(series, snapshots=tuple(map(opened, series.snapshots)))
