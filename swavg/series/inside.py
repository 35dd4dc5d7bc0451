"""Steps and metrics from inside a checkpoint. Best effort: odd content is passed over.

Nothing of a file is run and no tensor is read but single numbers (Lightning keeps its scores as
tensors).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from swavg.errors import InputError
from swavg.formats import open_checkpoint
from swavg.formats.files import open_input, read_exactly
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
        counts = counts_in(state) if isinstance(state, Mapping) else {}
        if counts:
            return Inside(counts)
    else:
        with open_input(path) as (fd, file):
            head = bytes(os.pread(fd, 8, 0))
            if head.startswith(b"PK\3\4"):
                # Only now: names that carry the step need none of the code for pickles.
                from swavg.series.inside_torch import read_torch

                return read_torch(path, fd, file)
    checkpoint = open_checkpoint(path)
    scalars = getattr(checkpoint, "scalars", None)
    if scalars is not None:
        return Inside(counts_in(scalars), dict(scores_in(scalars)))
    return _of_metadata(checkpoint.metadata)


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


def counts_in(entries: Mapping[Any, Any]) -> dict[Unit, int]:
    found: dict[Unit, int] = {}
    units: tuple[tuple[Unit, tuple[str, ...]], ...] = (("step", _STEPS), ("epoch", _EPOCHS))
    for unit, names in units:
        values = (_count(entries.get(name)) for name in names)
        count = next((value for value in values if value is not None), None)
        if count is not None:
            found[unit] = count
    return found


def scores_in(entries: Mapping[Any, Any]) -> Iterator[tuple[str, float]]:
    for name in _SCORES:
        if (value := number(entries.get(name))) is not None:
            yield name, value


def _of_metadata(metadata: Mapping[str, str]) -> Inside:
    counts = counts_in(metadata)
    metrics = dict(scores_in(metadata))
    if "swavg" not in metadata:
        # A snapshot (swavg.training). In an average these are those of the last of its inputs.
        return Inside(counts, metrics | numbers_in(_object(metadata.get("metrics"))))
    try:
        recipe = json.loads(metadata["swavg"])
    except (ValueError, RecursionError):
        return Inside(counts, metrics, averaged=True)
    if isinstance(recipe, dict):
        counts |= counts_in(recipe)
        given = recipe.get("metrics")
        metrics |= numbers_in(given) if isinstance(given, dict) else {}
    return Inside(counts, metrics, averaged=True)


def _object(text: str | None) -> Mapping[Any, Any]:
    """The JSON object in ``text``; empty if there is none."""
    try:
        found = json.loads(text) if text is not None else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def numbers_in(entries: Mapping[Any, Any], prefix: str = "") -> dict[str, float]:
    return {
        f"{prefix}{name}": found
        for name, value in entries.items()
        if isinstance(name, str) and (found := number(value)) is not None
    }
