"""What a torch zip says of itself: steps, epochs, and the metrics of known projects."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

from swavg.errors import InputError
from swavg.formats.files import InputFile, open_input
from swavg.formats.torch_pickle import MAX_BYTES, read_pickle
from swavg.formats.torch_plain import RECIPE
from swavg.formats.torch_records import Record, read_records
from swavg.formats.torch_values import Opaque, View
from swavg.formats.torch_zip import looks_like_torch_zip
from swavg.series.inside import Inside, counts_in, number, numbers_in, scores_in
from swavg.series.model import Unit


def read_torch(path: str, fd: int, file: InputFile) -> Inside:
    """Counts and metrics in the open torch zip. InputError if it is broken."""
    return _of_torch(_TorchZip(path, fd, read_records(fd, file)))


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
    counts = counts_in(plain)
    metrics = dict(scores_in(plain))
    # timm
    for name, value in _entries(top.get("metrics")).items():
        if isinstance(name, str) and (found := file.number(value)) is not None:
            metrics[name] = found
    metrics |= _of_lightning(file, _entries(top.get("callbacks")))
    for unit, value in _of_fairseq(top).items():
        counts.setdefault(unit, value)
    metrics |= dict(scores_in(_entries(top.get("extra_state"))))
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
    return {**counts_in(_entries(iterator)), **counts_in(_entries(last))}


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
                for name, value in numbers_in(_entries(values), f"{group}.").items()
            }
    return found
