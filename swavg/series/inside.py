"""Steps and metrics from inside a checkpoint. Best effort: odd content is passed over.

Nothing of a file is run and no tensor is read but single numbers (Lightning keeps its scores as
tensors).
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from swavg.errors import InputError
from swavg.formats import open_checkpoint
from swavg.formats.base import open_input, read_exactly
from swavg.formats.torch_pickle import MAX_BYTES, read_pickle
from swavg.formats.torch_plain import RECIPE
from swavg.formats.torch_records import Record, read_records
from swavg.formats.torch_values import Opaque, View
from swavg.formats.torch_zip import looks_like_torch_zip
from swavg.series.model import Unit

_STEPS = ("global_step", "step", "num_updates", "iteration", "global_iteration", "iter")
_EPOCHS = ("epoch", "current_epoch")
_SCORES = ("metric", "best_score", "val_loss", "valid_loss", "loss", "val_acc", "acc")
_MAX_JSON = 64 << 20


@dataclass(frozen=True, slots=True)
class Inside:
    """What a checkpoint says of itself; ``averaged`` says that swavg wrote it."""

    counts: Mapping[Unit, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    averaged: bool = False


def read_inside(path: str) -> Inside:
    """Counts and metrics in the checkpoint at ``path``. InputError if it cannot be opened."""
    if os.path.isdir(path):
        state = read_json(os.path.join(path, "trainer_state.json"))
        counts = _counts(state) if isinstance(state, Mapping) else {}
        if counts:
            return Inside(counts)
    else:
        with open_input(path) as (fd, file):
            head = bytes(os.pread(fd, 8, 0))
            if looks_like_torch_zip(head):
                return _of_torch(_TorchZip(path, fd, read_records(fd, file)))
            if head[:1] == b"\x80":
                scalars = getattr(open_checkpoint(path), "scalars", {})
                return Inside(_counts(scalars), dict(_scores(scalars)))
    return _of_metadata(open_checkpoint(path).metadata)


def read_json(path: str) -> Any:
    """The content of a JSON file; None if there is none, or none that can be read."""
    try:
        with open_input(path) as (fd, file):
            if file.size <= _MAX_JSON:
                return json.loads(bytes(read_exactly(fd, file, 0, file.size)))
    except (InputError, ValueError, RecursionError):
        pass
    return None


def number(value: Any) -> float | None:
    """``value`` as a float if it is a number (or the text of one), else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _count(value: Any) -> int | None:
    found = number(value)
    if found is None or not math.isfinite(found) or found < 0 or found != int(found):
        return None
    return int(found)


def _counts(entries: Mapping[Any, Any]) -> dict[Unit, int]:
    found: dict[Unit, int] = {}
    units: tuple[tuple[Unit, tuple[str, ...]], ...] = (("step", _STEPS), ("epoch", _EPOCHS))
    for unit, names in units:
        values = (_count(entries.get(name)) for name in names)
        count = next((value for value in values if value is not None), None)
        if count is not None:
            found[unit] = count
    return found


def _scores(entries: Mapping[Any, Any]) -> Iterator[tuple[str, float]]:
    for name in _SCORES:
        if (value := number(entries.get(name))) is not None:
            yield name, value


def _of_metadata(metadata: Mapping[str, str]) -> Inside:
    counts = _counts(metadata)
    metrics = dict(_scores(metadata))
    try:
        recipe = json.loads(metadata["swavg"])
    except (KeyError, ValueError, RecursionError):
        return Inside(counts, metrics, averaged="swavg" in metadata)
    if isinstance(recipe, dict):
        counts = {**_counts(recipe), **counts}
        given = recipe.get("metrics")
        metrics |= _numbers(given) if isinstance(given, dict) else {}
    return Inside(counts, metrics, averaged=True)


def _numbers(entries: Mapping[Any, Any], prefix: str = "") -> dict[str, float]:
    return {
        f"{prefix}{name}": found
        for name, value in entries.items()
        if isinstance(name, str) and (found := number(value)) is not None
    }


class _TorchZip:
    """The object of a torch zip, and the numbers in its one-element tensors."""

    def __init__(self, path: str, fd: int, records: tuple[Record, ...]) -> None:
        self.path = path
        self._fd = fd
        self._root = records[0].name.partition("/")[0] if records else ""
        self._records = {record.name: record for record in records}
        self.averaged = f"{self._root}/{RECIPE}" in self._records
        self.top = self._unpickled()

    def _unpickled(self) -> Any:
        record = self._records.get(f"{self._root}/data.pkl")
        if record is None or record.size > MAX_BYTES:
            raise InputError(self.path, "a zip, but no torch checkpoint")
        with io.FileIO(os.dup(self._fd), "rb") as raw:
            raw.seek(record.offset)
            with io.BufferedReader(raw, 1 << 16) as source:
                return read_pickle(self.path, source, record.size)[0]

    def number(self, value: Any) -> float | None:
        """A plain number, or the one element of a tensor."""
        if not isinstance(value, View):
            return number(value)
        record = self._records.get(f"{self._root}/data/{value.storage.key}")
        size = value.dtype.bits // 8
        if record is None or size == 0 or value.size not in ((), (1,), [1], []):
            return None
        place = value.offset * size if type(value.offset) is int else -1
        if not 0 <= place <= record.size - size:
            return None
        import numpy as np

        data = os.pread(self._fd, size, record.offset + place)
        try:
            return float(np.frombuffer(data, value.dtype.numpy())[0])
        except (TypeError, ValueError):
            return None


def _entries(node: Any) -> Mapping[Any, Any]:
    if isinstance(node, Opaque):
        return node.pairs or (node.state if isinstance(node.state, dict) else {})
    return node if isinstance(node, dict) else {}


def _of_torch(file: _TorchZip) -> Inside:
    top = _entries(file.top)
    plain = {name: file.number(value) for name, value in top.items() if name != "state_dict"}
    counts = _counts(plain)
    metrics = dict(_scores(plain))
    # timm
    for name, value in _entries(top.get("metrics")).items():
        if isinstance(name, str) and (found := file.number(value)) is not None:
            metrics[name] = found
    metrics |= _of_lightning(file, _entries(top.get("callbacks")))
    for unit, value in _of_fairseq(top).items():
        counts.setdefault(unit, value)
    metrics |= dict(_scores(_entries(top.get("extra_state"))))
    return Inside(counts, metrics, file.averaged)


def _of_lightning(file: _TorchZip, callbacks: Mapping[Any, Any]) -> dict[str, float]:
    """The score of each ModelCheckpoint when the file was written, by the metric it monitors."""
    metrics = {}
    for state in map(_entries, callbacks.values()):
        monitor, score = state.get("monitor"), file.number(state.get("current_score"))
        if isinstance(monitor, str) and score is not None:
            metrics[monitor] = score
    return metrics


def _of_fairseq(top: Mapping[Any, Any]) -> dict[Unit, int]:
    history = top.get("optimizer_history")
    last = history[-1] if isinstance(history, list) and history else None
    iterator = _entries(_entries(top.get("extra_state")).get("train_iterator"))
    return {**_counts(_entries(iterator)), **_counts(_entries(last))}


def espnet_stats(path: str) -> dict[int, dict[str, float]]:
    """Metrics by epoch from the reporter in ESPnet's ``checkpoint.pth``; empty if there are none.

    They are called as ESPnet calls them: ``valid.acc``.
    """
    try:
        with open_input(path) as (fd, file):
            if not looks_like_torch_zip(bytes(os.pread(fd, 8, 0))):
                return {}
            top = _entries(_TorchZip(path, fd, read_records(fd, file)).top)
    except InputError:
        return {}
    found: dict[int, dict[str, float]] = {}
    for epoch, groups in _entries(_entries(top.get("reporter")).get("stats")).items():
        if type(epoch) is int:
            found[epoch] = {
                name: value
                for group, values in _entries(groups).items()
                for name, value in _numbers(_entries(values), f"{group}.").items()
            }
    return found
