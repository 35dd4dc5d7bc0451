"""Opening Orbax checkpoints: the arrays of the model as tensors, and what is beside them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence

from swavg.errors import quoted
from swavg.formats.checkpoint import Checkpoint, Extras, Scalar
from swavg.formats.configuration import small_json
from swavg.formats.metrics import number
from swavg.formats.orbax.tree import Leaf, Model, leaves_in, model_of
from swavg.formats.tensors import Shared, TableBuilder
from swavg.formats.train_state import Path, groups_of
from swavg.storage.paths import check_local, is_file
from swavg.storage.pool import Pool
from swavg.storage.sources import Source

_COUNTS = ("step", "global_step", "epoch", "iteration", "num_updates")
_NEAR = 3
"""Names in the path of a count, at most: those of its item and what is around the model."""
_LARGE = 16 << 20
"""Bytes of a row of chunks from which on it is told what decoding one takes."""


def open_orbax(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    """Read what lists and describes the arrays of ``path``: a step's folder, or an item's.
    InputError, also for one in a store; MissingDependencyError without tensorstore."""
    check_local(path, "is an Orbax checkpoint, which is only read from this machine")
    model = model_of(path, leaves_in(path), key)
    from swavg.formats.orbax.arrays import IN_MEMORY, facts_of, source_of

    facts = list(facts_of(model.leaves))
    rows = [each.row for each in facts]
    held = max((row for row in rows if row <= IN_MEMORY), default=0)
    builder = TableBuilder()
    sources: list[Source] = []
    for leaf, each in zip(model.leaves, facts, strict=True):
        name = ".".join(leaf.path[len(model.root) :])
        builder.add(name, (each.dtype, each.shape, None), 0, len(sources))
        sources.append(source_of(leaf, each, held))
    zeros = [leaf.stored for leaf, each in zip(model.leaves, facts, strict=True) if not each.whole]
    extras = Extras(
        scalars={**_metrics(path), **_counts(model)},
        root_key=".".join(model.root),
        others=tuple(groups_of(_paths(model.rest), _paths(model.leaves))),
        held=held,
        decoded=max(rows),
    )
    notes = tuple(_notes(model, zeros, max(rows)))
    return Checkpoint(path, "orbax", tuple(sources), builder.build(shared), {}, notes, extras)


def _paths(leaves: Sequence[Leaf]) -> Iterator[Path]:
    return (leaf.path for leaf in leaves)


def _notes(model: Model, zeros: Sequence[str], row: int) -> list[str]:
    notes = []
    if model.rest:
        taken = groups_of(_paths(model.leaves), _paths(model.rest))
        notes.append(f"taken for the model: {quoted(taken, 5)}")
    notes += [
        f"there is also '{name}' (choose it with --key {name})" for name in model.candidates[:5]
    ]
    if zeros:
        notes.append(
            f"chunks that are not stored are zeros, as older Orbax has it: of {quoted(zeros, 3)}"
        )
    if row > _LARGE:
        notes.append(
            f"decoding its chunks takes twice {row / 1e6:,.0f} MB of memory, and as much on disk"
            " for each input, in the folder for temporary files"
        )
    return notes


def _metrics(path: str) -> dict[str, Scalar]:
    """What was measured, where the step has an item for it."""
    place = os.path.join(path, "metrics", "metrics")
    content = small_json(place) if is_file(place) else None
    found = content.items() if isinstance(content, dict) else ()
    return {f"metrics.{name}": value for name, value in found if number(value) is not None}


def _counts(model: Model) -> dict[str, Scalar]:
    """The numbers beside the model that count steps."""
    from swavg.formats.orbax.arrays import facts_of, source_of

    scalars: dict[str, Scalar] = {}
    counts = [
        leaf
        for leaf in model.rest
        if leaf.path[-1] in _COUNTS and leaf.kind != "string" and len(leaf.path) <= _NEAR
    ]
    # The outermost counts.
    counts.sort(key=lambda leaf: -len(leaf.path))
    with Pool() as pool:
        for leaf, each in zip(counts, facts_of(counts), strict=True):
            if each.dtype.kind in ("integer", "float") and math.prod(each.shape) == 1:
                data = pool.read(source_of(leaf, each, 0), 0, each.dtype.itemsize)
                scalars[leaf.path[-1]] = each.dtype.number(data)
    return scalars
