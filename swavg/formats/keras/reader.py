"""Opening Keras files: the model's variables, and not its optimizer's."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from swavg.errors import InputError, NoWeightsError, some
from swavg.formats.blocks import Read
from swavg.formats.checkpoint import Checkpoint, Extras, Record, Shared, TableBuilder
from swavg.formats.keras.hdf5 import Dataset, DatasetSource, datasets_in
from swavg.formats.zip_directory import data_offsets, read_directory
from swavg.formats.zip_layout import TemplateMember
from swavg.formats.zip_recipe import read_recipe
from swavg.storage.sources import LocalFile, Pool, Source

WEIGHTS = "model.weights.h5"
_WHOLE = "model_weights"
_OPTIMIZER = re.compile(r"(.*_)?optimizer")
"""A group of a model's own attribute: it may have several."""
_STEP = re.compile(r"optimizer/vars/0|optimizer_weights/.*\b(iteration|iterations|iter)(:0)?")
_SHARDED = "is one of several shards, which swavg does not read"
_HINT = "Save the weights again without max_shard_size."


def open_hdf5(path: str, shared: Shared | None = None) -> Checkpoint:
    """Open an HDF5 file that Keras wrote. InputError if it is damaged, or one of several."""
    shard = re.fullmatch(r"(.*)_\d{5}\.weights\.h5", path)
    if shard and os.path.exists(f"{shard[1]}.weights.json"):
        raise InputError(path, _SHARDED, hint=_HINT)
    file = LocalFile.find(path)
    datasets = datasets_in(file, 0, file.size)
    return _checkpoint("hdf5", file, (0, file.size), datasets, Extras(), shared)


def open_archive(path: str, shared: Shared | None = None) -> Checkpoint:
    """Open a .keras archive. InputError if it is damaged; its configuration is not looked at."""
    file = LocalFile.find(path)
    with Pool() as pool:
        read: Read = partial(pool.read, file)
        entries, end = read_directory(read, path, file.size)
        starts = data_offsets(read, path, entries, end)
        recipe = read_recipe(read, file.size)
    members = tuple(map(TemplateMember.of, entries, starts))
    weights = next((each for each in members if each.name == WEIGHTS), None)
    if weights is None:
        if any(each.name.endswith(".weights.json") for each in members):
            raise InputError(path, "holds its weights in several shards, which swavg does not read",
                             hint=_HINT)  # fmt: skip
        raise NoWeightsError(path, f"is no Keras archive: it has no {WEIGHTS}")
    if weights.deflated is not None:
        raise InputError(path, f"its {WEIGHTS} is compressed; Keras stores it as it is",
                         hint="Load and save it again with Keras.")  # fmt: skip
    crcs = [each[4] for each in entries]
    records = [
        Record(each.name, each.start, each.size, crc)
        for each, crc in zip(members, crcs, strict=True)
        if each.deflated is None
    ]
    extras = Extras(recipe=recipe, records={0: records}, template=members)
    datasets = datasets_in(file, weights.start, weights.size)
    return _checkpoint("keras", file, (weights.start, weights.size), datasets, extras, shared)


def _checkpoint(
    format: str,
    file: LocalFile,
    window: tuple[int, int],
    datasets: Sequence[Dataset],
    extras: Extras,
    shared: Shared | None,
) -> Checkpoint:
    """What the ``datasets`` of the HDF5 file in a ``window`` (start and size) are."""
    groups = dict.fromkeys(each.name.split("/")[0] for each in datasets)
    whole = _WHOLE in groups
    others = [
        group
        for group in groups
        if (group != _WHOLE if whole else _OPTIMIZER.fullmatch(group) is not None)
    ]
    sources: list[Source] = [file]
    builder, left, no_numbers = TableBuilder(), 0, []
    for each in datasets:
        group, _, below = each.name.partition("/")
        if group in others:
            left += 1
        elif each.dtype is None:
            no_numbers.append(each.name)
        else:
            source, offset = 0, window[0] + (each.offset or 0)
            if each.offset is None and each.nbytes:
                size = each.dtype.itemsize
                source, offset = len(sources), 0
                sources.append(DatasetSource(file, *window, each.name, each.shape, size))
            name = below if whole else each.name
            builder.add(name, (each.dtype, each.shape, None), offset, source)
    table = builder.build(shared)
    if not len(table):
        raise NoWeightsError(file.name, "holds no variables of a model")
    notes = []
    if others:
        named = " and ".join(f"'{group}'" for group in others)
        notes.append(f"{left:,} variables in {named} are not the model's")
    if no_numbers:
        shown = some([f"'{name}'" for name in no_numbers], 5)
        notes.append(f"{shown}: no numbers")
    extras = replace(
        extras,
        scalars=_step(file, window[0], datasets),
        root_key=_WHOLE if whole else None,
        others=tuple(others),
        non_tensors=tuple(no_numbers),
    )
    return Checkpoint(file.name, format, tuple(sources), table, notes=tuple(notes), extras=extras)


def _step(file: LocalFile, start: int, datasets: Sequence[Dataset]) -> dict[str, int]:
    """How many steps the optimizer has done."""
    for each in datasets:
        counts = each.dtype is not None and each.dtype.kind == "integer" and each.shape == ()
        if counts and each.offset is not None and _STEP.fullmatch(each.name):
            with Pool() as pool:
                raw = pool.read(file, start + each.offset, each.nbytes)
            return {"iteration": int.from_bytes(raw, "little")}
    return {}
