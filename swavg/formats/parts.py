"""Opening composites: their parts, or all of one to be looked at."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace

from swavg.errors import InputError, NoWeightsError, OptimizerError
from swavg.formats import open_checkpoint, recipe_in
from swavg.formats.checkpoint import Checkpoint, Extras
from swavg.formats.composite import Composite, as_composite, find_composite
from swavg.formats.part_names import part_mark, without_numbers
from swavg.formats.table import FORMATS
from swavg.formats.tensors import Shared, TableBuilder
from swavg.storage.paths import is_folder
from swavg.storage.sources import Source


@dataclass(frozen=True, slots=True)
class OpenedComposite:
    """A composite whose files are open: the ``parts`` that hold weights, why the others do not,
    and which hold the state of an optimizer."""

    composite: Composite
    parts: Mapping[str, Checkpoint]
    without: Mapping[str, InputError]
    optimizers: tuple[str, ...]

    @property
    def side_files(self) -> dict[str, str]:
        """What is copied beside the parts: paths by name."""
        places = {name: self.composite.place(name) for name in self.without}
        return {**self.composite.side_files, **places}

    @property
    def left_out(self) -> tuple[str, ...]:
        """What is not."""
        return (*self.composite.left_out, *self.optimizers)


def open_parts(
    composite: Composite, key: str | None = None, shared: Shared | None = None
) -> OpenedComposite:
    """Open all parts. InputError for one that is broken, and if none holds weights."""
    parts: dict[str, Checkpoint] = {}
    without: dict[str, InputError] = {}
    optimizers = []
    for name in composite.parts:
        place = composite.place(name)
        if "zero_" in part_mark(name):
            raise InputError(
                place,
                "holds a part of weights that DeepSpeed's ZeRO-3 has spread over ranks: they are"
                " joined with the *_optim_states.pt of all ranks, without tensor parallelism",
                hint="Otherwise save them whole: stage3_gather_16bit_weights_on_model_save.",
            )
        try:
            part = open_checkpoint(place, key=key, shared=shared)
        except OptimizerError:
            optimizers.append(name)
            continue
        except NoWeightsError as error:
            if is_folder(place):
                raise
            without[name] = error
            continue
        if FORMATS[part.format].data:
            without[name] = NoWeightsError(place, "holds arrays, among weights of other formats")
        elif part.extras.is_optimizer:
            optimizers.append(name)
        else:
            parts[name] = part if name else _beside_others(part, composite)
    if not parts:
        raise InputError(composite.path, "is a folder in which swavg finds no weights")
    return OpenedComposite(composite, parts, without, tuple(optimizers))


def _beside_others(own: Checkpoint, composite: Composite) -> Checkpoint:
    """A folder's own weights, which do not leave out what other parts take care of."""
    taken = {name.partition(os.sep)[0] for name in (*composite.parts, *composite.side_files)}
    left = tuple(name for name in own.extras.left_out if name not in taken)
    return replace(own, extras=replace(own.extras, left_out=left))


def open_whole(
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    shared: Shared | None = None,
    of_parts: bool = False,
) -> Checkpoint:
    """Open a checkpoint to be looked at, or an average that is continued: of a composite all
    tensors, below the name of their part (``unet/conv.weight``), and what its first part holds
    besides. ``of_parts``: a folder is one, even if its files look like snapshots. Raises
    InputError."""
    path = os.fspath(path)
    composite = as_composite(path)
    if composite is None:
        return open_checkpoint(path, key=key, shared=shared)
    if not of_parts:
        check_one_checkpoint(composite)
    opened = open_parts(composite, key, shared)
    sources: list[Source] = []
    notes: list[str] = []
    builder = TableBuilder()
    for name, part in opened.parts.items():
        for number in range(len(part)):
            builder.add_of(part.tensors, number, len(sources), name and f"{name}/")
        sources += part.sources
        notes += [f"{name}: {note}" if name else note for note in part.notes]
    first = next(iter(opened.parts.values()))
    extras = Extras(scalars=first.extras.scalars, recipe=first.extras.recipe)
    table = builder.build(shared)
    return Checkpoint(path, "composite", tuple(sources), table, {}, tuple(notes), extras)


def check_one_checkpoint(found: Composite) -> None:
    """InputError if names of parts differ by a number only: snapshots, unless the folder is known
    for parts, or swavg wrote all of it at once."""
    names = {without_numbers(name) for name in found.parts}
    if len(names) == len(found.parts) or find_composite(found.path) is not None:
        return
    made = {_made(found.place(name)) for name in found.parts}
    if len(made) > 1 or None in made:
        raise InputError(
            found.path,
            f"holds {len(found.parts)} checkpoints, where one is expected",
            hint=f"Give one, such as {found.place(found.parts[-1])}; they are listed by:\n"
            f"swavg list {shlex.quote(found.path)}",
        )


def _made(path: str) -> str | None:
    """How swavg made an average, but for the names of what it made it of; None of other files."""
    try:
        made = json.loads(recipe_in(path) or "")
        return json.dumps({**made, "inputs": None}, sort_keys=True)
    except (ValueError, TypeError, RecursionError):
        return None
