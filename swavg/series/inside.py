"""Steps and metrics from inside a checkpoint. Best effort: odd content is passed over.

Nothing of a file is run and no tensor is read but single numbers (Lightning keeps its scores as
tensors).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain

from swavg.errors import InputError
from swavg.formats import recipe_in
from swavg.formats.metrics import number
from swavg.formats.parts import open_whole
from swavg.formats.tensors import Shared
from swavg.series.model import Unit
from swavg.storage.paths import is_folder, read_file

_COUNTS: Mapping[Unit, tuple[str, ...]] = {
    "step": ("global_step", "step", "num_updates", "iteration", "global_iteration", "iter"),
    "epoch": ("epoch", "current_epoch"),
}
_SCORES = ("metric", "best_score", "val_loss", "valid_loss", "loss", "val_acc", "acc")
_MAX_JSON = 16 << 20
_MAX_LINES = 1 << 16
_TOO_LARGE = "too large to be read in one piece"
_MAX_NODES = 500_000
"""Objects and lists in JSON: each takes up to 24 times the bytes of its text."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a checkpoint says of itself."""

    counts: Mapping[Unit, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    averaged: bool = False
    """swavg wrote it, as an average of others."""


def facts_of(scalars: Mapping[str, object], recipe: str | None = None) -> Facts:
    """What plain values say, as trainers and swavg name them.

    ``scalars`` are the metadata of a safetensors file, the values of a torch file outside its
    weights (those further down by their dotted path: ``metrics.top1``; ``-1`` is the last of a
    list), or the top of a ``trainer_state.json``. ``recipe`` is what swavg recorded in an average.
    """
    counts = _counts_in(scalars)
    # fairseq
    progress = _counts_in(_below(scalars, "optimizer_history.-1."))
    counts = _counts_in(_below(scalars, "extra_state.train_iterator.")) | progress | counts
    if recipe is not None:
        # The scores beside it are those of the last of its inputs.
        made = _object(recipe)
        own = made.get("metrics")
        measured = _numbers_in(own) if isinstance(own, Mapping) else {}
        return Facts(counts | _counts_in(made), measured, averaged=True)
    metrics = _numbers_in(scalars, _SCORES)
    # timm
    metrics |= _numbers_in(_below(scalars, "metrics."))
    # Lightning: the score of each ModelCheckpoint when the file was written.
    for name, monitor in _below(scalars, "callbacks.").items():
        callback = name.removesuffix(".monitor")
        score = number(scalars.get(f"callbacks.{callback}.current_score"))
        if callback != name and isinstance(monitor, str) and score is not None:
            metrics[monitor] = score
    metrics |= _numbers_in(_below(scalars, "extra_state."), _SCORES)
    # A snapshot (swavg.training)
    return Facts(counts, metrics | _numbers_in(_object(scalars.get("metrics"))))


def is_of_inputs(recipe: str) -> bool:
    """Whether what is averaged was checkpoints, or cannot be told: a recipe that swavg writes in
    training names no inputs."""
    made = _object(recipe)
    return "inputs" in made or not made


def averages_inputs(path: str) -> bool:
    """Whether swavg made the checkpoint at ``path`` of others, as its recipe alone says."""
    recipe = recipe_in(path)
    return recipe is not None and is_of_inputs(recipe)


def metrics_by_epoch(scalars: Mapping[str, object]) -> dict[int, dict[str, float]]:
    """What the reporter in ESPnet's ``checkpoint.pth`` has seen, as ESPnet calls it
    (``valid.acc``)."""
    metrics: dict[int, dict[str, float]] = {}
    for name, value in _numbers_in(_below(scalars, "reporter.stats.")).items():
        epoch, _, metric = name.partition(".")
        if epoch.isdecimal():
            metrics.setdefault(int(epoch), {})[metric] = value
    return metrics


def read_inside(path: str, shared: Shared | None = None) -> Facts:
    """The facts in the checkpoint at ``path``. InputError if it cannot be opened."""
    if is_folder(path) and recipe_in(path) is None:
        state = read_json(os.path.join(path, "trainer_state.json"))
        facts = facts_of(state) if isinstance(state, dict) else Facts()
        if facts.counts:
            return facts
        facts = _speechbrain(path)
        if facts != Facts():
            return facts
    return facts_of(*read_scalars(path, shared))


def _speechbrain(path: str) -> Facts:
    """What stands in the CKPT.yaml of a folder of SpeechBrain's (a line each), and beside it."""
    try:
        lines = str(read_file(os.path.join(path, "CKPT.yaml"), _MAX_LINES), "utf-8").splitlines()
    except (InputError, ValueError):
        return Facts()
    values = {name.strip(): text for name, _, text in (line.partition(":") for line in lines)}
    with suppress(InputError, ValueError):
        epochs = read_file(os.path.join(path, "counter.ckpt"), 20)
        values.setdefault("epoch", str(epochs, "ascii").strip())
    counts = _counts_in(values)
    names = [name for name in values if name not in ("unixtime", *chain(*_COUNTS.values()))]
    return Facts(counts, _numbers_in(values, names))


def read_scalars(
    path: str, shared: Shared | None = None
) -> tuple[Mapping[str, object], str | None]:
    """What a checkpoint holds besides tensors, as :func:`facts_of` takes it. InputError if it
    cannot be opened."""
    extras = open_whole(path, shared=shared).extras
    return extras.scalars, extras.recipe


def parse_json(text: str) -> object:
    """The value of JSON. ValueError if it is none, or would take hundreds of MiB."""
    if len(text) > _MAX_JSON or text.count("{") + text.count("[") > _MAX_NODES:
        raise ValueError(_TOO_LARGE)
    try:
        value: object = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def load_json(path: str) -> object:
    """The value of a JSON file. InputError and ValueError (:func:`parse_json`)."""
    data = read_file(path, _MAX_JSON + 1)
    if len(data) > _MAX_JSON:
        raise ValueError(_TOO_LARGE)
    return parse_json(str(data, "utf-8-sig"))


def read_json(path: str) -> object:
    """The value of a JSON file; None if there is none, or none that can be read."""
    try:
        return load_json(path)
    except (InputError, ValueError):
        return None


def _object(text: object) -> Mapping[str, object]:
    """The JSON object in ``text``; empty if there is none."""
    try:
        value = parse_json(text) if isinstance(text, str) else None
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _below(scalars: Mapping[str, object], prefix: str) -> dict[str, object]:
    return {
        name[len(prefix) :]: value for name, value in scalars.items() if name.startswith(prefix)
    }


def _counts_in(scalars: Mapping[str, object]) -> dict[Unit, int]:
    counts: dict[Unit, int] = {}
    for unit, names in _COUNTS.items():
        for name in names:
            value = number(scalars.get(name))
            if value is not None and math.isfinite(value) and value >= 0 and value == int(value):
                counts[unit] = int(value)
                break
    return counts


def _numbers_in(
    scalars: Mapping[str, object], names: Iterable[str] | None = None
) -> dict[str, float]:
    values = ((name, number(scalars.get(name))) for name in (scalars if names is None else names))
    return {name: value for name, value in values if value is not None}
