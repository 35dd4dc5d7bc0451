"""Writing Keras files: the template's, with other bytes in the datasets of its model."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import partial

from swavg.errors import InputError, OutputError, RequestError
from swavg.formats.checkpoint import Checkpoint, Form
from swavg.formats.keras.reader import WEIGHTS, open_archive, open_hdf5
from swavg.formats.keras.recipe import Recorded, with_recipe
from swavg.formats.layout import Kept, Layout, WriteRequest
from swavg.formats.template import CannotKeep, Replacement, replacements, spliced
from swavg.formats.zip_layout import (
    CheckedLayout,
    Member,
    arranged,
    check_members,
    lay_out_archive,
)
from swavg.formats.zip_recipe import comment_of
from swavg.storage.sources import LocalFile

Places = Sequence[tuple[str, Form, int, int]]
"""Name, form, source and offset of each tensor of a file."""


def lay_out_hdf5(request: WriteRequest) -> Layout:
    """The template's HDF5 file, with the recipe of the output. RequestError if the template is no
    such file, or its structure cannot be kept."""
    replaced, template = _replaced(request, "hdf5"), request.template
    file = template.sources[0]
    assert isinstance(file, LocalFile)
    recorded = Recorded(file.size)
    if request.recipe != (template.extras.recipe or ""):
        recorded = with_recipe(file, request.recipe)
    places, kept, bodies = spliced(0, recorded.kept, 0, replaced, recorded.edits)
    if recorded.added:
        bodies.append((recorded.kept, recorded.added))
    layout = CheckedLayout(
        "",
        recorded.kept + len(recorded.added),
        request.specs,
        array("I", [number for number, _ in places]),
        array("q", [offset for _, offset in places]),
        tuple(kept),
        check=partial(_check_hdf5, planned=_places(template, 0)),
        bodies=tuple(bodies),
    )
    return Layout((layout,), notes=recorded.notes)


def lay_out_keras(request: WriteRequest) -> Layout:
    """The template's .keras archive. RequestError as :func:`lay_out_hdf5`."""
    replaced, members = _replaced(request, "keras"), request.template.extras.template
    assert isinstance(members, tuple)
    arrangement = tuple(arranged([member.copy for member in members]))
    places: list[tuple[int, int]] = []
    kept: list[Kept] = []
    shift = 0
    for member, placed in zip(members, arrangement, strict=True):
        inside, between, _ = spliced(member.start, member.size, placed.start, replaced)
        places += inside
        kept += between
        if member.name == WEIGHTS:
            shift = placed.start - member.start
    comment, notes = comment_of(request.recipe)
    planned = _places(request.template, shift)
    layout = lay_out_archive(
        arrangement,
        request.specs,
        places,
        kept=kept,
        comment=comment,
        check=partial(_check_keras, arrangement=arrangement, planned=planned),
    )
    return Layout((layout,), notes=notes)


def _replaced(request: WriteRequest, format: str) -> list[Replacement]:
    """Where the tensors go in a template of this format."""
    template = request.template
    if template.format != format:
        raise RequestError(
            f"A file of the format {format} is written like one: {template.path} is none.",
            hint="Give such a file as the last input, or write a .safetensors file.",
        )
    hint = "Write a .safetensors file instead."
    table = template.tensors
    apart = next((name for name, at in zip(table, table.columns.source, strict=True) if at), None)
    if apart is not None:
        raise RequestError(
            f"{template.path}: '{apart}' is compressed or in chunks, which swavg does not write.",
            hint=hint,
        )
    try:
        if template.renamed:
            raise CannotKeep("names of tensors change")
        replaced, stretches = replacements(request)
        # Datasets do not overlap.
        assert not stretches
        return replaced
    except CannotKeep as reason:
        raise RequestError(
            f"The output cannot be like {template.path}: {reason}.", hint=hint
        ) from None


def _places(checkpoint: Checkpoint, shift: int) -> Places:
    """Where the tensors of a file lie that is ``shift`` bytes further on."""
    table = checkpoint.tensors
    columns = table.columns
    return [
        (name, table.form_of(at), columns.source[at], table.base + columns.offset[at] + shift)
        for at, name in enumerate(table)
    ]


def _check_hdf5(path: str, *, planned: Places) -> None:
    """OutputError unless h5py finds the tensors in the finished file where they were planned."""
    _compare(path, planned, open_hdf5)


def _check_keras(path: str, *, arrangement: Sequence[Member], planned: Places) -> None:
    check_members(path, arrangement)
    _compare(path, planned, open_archive)


def _compare(path: str, planned: Places, open: Callable[[str], Checkpoint]) -> None:
    try:
        found = _places(open(path), 0)
    except InputError as error:
        raise OutputError(path, f"the finished file does not open: {error.problem}") from error
    if found != planned:
        raise OutputError(path, "the finished file has other tensors than were planned")
