"""Opening Keras files: the model's variables, and not its optimizer's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from swavg.errors import InputError, NoWeightsError, quoted
from swavg.formats.checkpoint import Checkpoint, Extras
from swavg.formats.keras.hdf5 import Dataset, DatasetSource, datasets_in
from swavg.formats.keras.optimizers import above, optimizers_in
from swavg.formats.keras.recipe import recipe_at
from swavg.formats.records import Record
from swavg.formats.tensors import Shared, TableBuilder
from swavg.formats.zip_directory import read_members
from swavg.formats.zip_layout import Member
from swavg.formats.zip_recipe import read_recipe
from swavg.storage.paths import exists, find_file, reading
from swavg.storage.pool import Pool
from swavg.storage.sources import Source

WEIGHTS = "model.weights.h5"
_WHOLE = "model_weights"
_STEP = re.compile(r"optimizer/vars/0|optimizer_weights/.*\b(iteration|iterations|iter)(:0)?")
_SHARDED = "is one of several shards, which swavg does not read"
_HINT = "Save the weights again without max_shard_size."


def open_hdf5(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    """Open an HDF5 file that Keras wrote. InputError if it is damaged, or one of several.

    ``key`` means nothing here.
    """
    shard = re.fullmatch(r"(.*)_\d{5}\.weights\.h5", path)
    if shard and exists(f"{shard[1]}.weights.json"):
        raise InputError(path, _SHARDED, hint=_HINT)
    file = find_file(path)
    datasets = datasets_in(file, 0, file.size)
    extras = Extras(recipe=recipe_at(file, 0, file.size))
    return _checkpoint("hdf5", file, (0, file.size), datasets, extras, shared)


def open_archive(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    """Open a .keras archive. InputError if it is damaged; its configuration is not looked at.

    ``key`` means nothing here.
    """
    with reading(path) as (file, read):
        found = read_members(read, path, file.size)
        recipe = read_recipe(read, file.size)
    members = tuple(Member.of(entry, start) for entry, start in found)
    weights = next((each for each in members if each.name == WEIGHTS), None)
    if weights is None:
        if any(each.name.endswith(".weights.json") for each in members):
            raise InputError(path, "holds its weights in several shards, which swavg does not read",
                             hint=_HINT)  # fmt: skip
        raise NoWeightsError(path, f"is no Keras archive: it has no {WEIGHTS}")
    if weights.deflated is not None:
        raise InputError(path, f"its {WEIGHTS} is compressed; Keras stores it as it is",
                         hint="Load and save it again with Keras.")  # fmt: skip
    records = [
        Record(entry.name, start, entry.packed, entry.crc)
        for entry, start in found
        if not entry.method
    ]
    extras = Extras(recipe=recipe, records={0: records}, template=members)
    datasets = datasets_in(file, weights.start, weights.size)
    return _checkpoint("keras", file, (weights.start, weights.size), datasets, extras, shared)


def _checkpoint(
    format: str,
    file: Source,
    window: tuple[int, int],
    datasets: Sequence[Dataset],
    extras: Extras,
    shared: Shared | None,
) -> Checkpoint:
    """What the ``datasets`` of the HDF5 file in a ``window`` (start and size) are."""
    groups = dict.fromkeys(each.name.split("/")[0] for each in datasets)
    whole = _WHOLE in groups
    others = [group for group in groups if group != _WHOLE] if whole else optimizers_in(datasets)
    beside = frozenset(others)
    sources: list[Source] = [file]
    builder, left, no_numbers = TableBuilder(), 0, []
    for each in datasets:
        if not beside.isdisjoint((*above(each.name), each.name)):
            left += 1
        elif each.dtype is None:
            no_numbers.append(each.name)
        else:
            source, offset = 0, window[0] + (each.offset or 0)
            if each.offset is None and each.nbytes:
                size = each.dtype.itemsize
                source, offset = len(sources), 0
                sources.append(DatasetSource(file, *window, each.name, each.shape, size))
            name = each.name.partition("/")[2] if whole else each.name
            builder.add(name, (each.dtype, each.shape, None), offset, source)
    table = builder.build(shared)
    if not len(table):
        raise NoWeightsError(file.name, "holds no variables of a model")
    notes = []
    if others:
        named = " and ".join(f"'{group}'" for group in others)
        notes.append(f"{left:,} variables in {named} are not the model's")
    if no_numbers:
        notes.append(f"{quoted(no_numbers, 5)}: no numbers")
    extras = replace(
        extras,
        scalars=_step(file, window[0], datasets),
        root_key=_WHOLE if whole else None,
        others=tuple(others),
        non_tensors=tuple(no_numbers),
    )
    return Checkpoint(file.name, format, tuple(sources), table, notes=tuple(notes), extras=extras)


def _step(file: Source, start: int, datasets: Sequence[Dataset]) -> dict[str, int]:
    """How many steps the optimizer has done."""
    for each in datasets:
        counts = each.dtype is not None and each.dtype.kind == "integer" and each.shape == ()
        if counts and each.offset is not None and _STEP.fullmatch(each.name):
            with Pool() as pool:
                raw = pool.read(file, start + each.offset, each.nbytes)
            return {"iteration": int.from_bytes(raw, "little")}
    return {}
