"""From what was decided for each row to a plan's entries and outputs, as each format lays out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from swavg.errors import RequestError
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.layout import FileLayout, Layout, WriteRequest
from swavg.formats.table import FORMATS
from swavg.planning.assemble import Assembly
from swavg.planning.decide import Decisions
from swavg.planning.entries import Entries
from swavg.planning.plan import Output
from swavg.planning.policy import Policy
from swavg.planning.row import Row
from swavg.planning.targets import Target

Compute = Callable[[int, Row, Decisions, Target, FileLayout], bytes]
"""Makes a small file of some tensors of a row, of this number, in memory."""


def lay_out(
    checkpoints: Sequence[Checkpoint],
    rows: Sequence[Row],
    decided: Sequence[Decisions],
    targets: Sequence[Target],
    recipes: Iterable[str],
    policy: Policy,
    changed: Sequence[Mapping[str, bytes]] = (),
    compute: Compute | None = None,
) -> tuple[Entries, tuple[Output, ...]]:
    """The entries of all rows, and where each of them lies. ``changed`` has, by row, what is
    written in place of side files, by name; ``compute`` makes a file at once. RequestError for what
    a format cannot hold."""
    assembly = Assembly(checkpoints)
    outputs = []
    for number, (row, decisions, target, recipe) in enumerate(
        zip(rows, decided, targets, recipes, strict=True)
    ):
        request = WriteRequest(
            decisions.specs,
            recipe,
            decisions.ties,
            checkpoints[row.members[-1]],
            decisions.unchanged,
            policy.drop_ties,
            policy.weights_only,
            policy.max_shard_size,
            len({id(checkpoints[member].tensors.columns) for member in row.members}) == 1,
            row.copies,
            compute=compute and partial(compute, number, row, decisions, target),
        )
        write = FORMATS[target.format].lay_out
        assert write is not None
        layout = write(request)
        if changed and changed[number]:
            layout = _with_files(layout, target, changed[number])
        if target.part is not None:
            layout = _in_folder(layout, target.part, target.side_files)
        alone = len({target.path for target in targets}) == 1
        outputs.append(assembly.output(number, row, decisions, target, layout, alone=alone))
    return assembly.entries(), tuple(outputs)


def _with_files(layout: Layout, target: Target, files: Mapping[str, bytes]) -> Layout:
    if not target.folder:
        raise RequestError(
            f"The output is one file, and needs {', '.join(files)} beside it.",
            hint="Give it a name without a suffix: it becomes a folder.",
        )
    sides = {name: path for name, path in layout.side_files.items() if name not in files}
    return replace(layout, files={**layout.files, **files}, side_files=sides)


def _in_folder(layout: Layout, part: str, side_files: Mapping[str, str]) -> Layout:
    """The layout of a part: its names are relative to the composite."""

    def name(own: str) -> str:
        return os.path.join(part, own) if own else part

    layouts = tuple(replace(file, name=name(file.name)) for file in layout.layouts)
    files = {name(own): data for own, data in layout.files.items()}
    own_side = {name(own): path for own, path in layout.side_files.items()}
    return Layout(layouts, files, {**side_files, **own_side}, layout.notes, layout.warnings)
