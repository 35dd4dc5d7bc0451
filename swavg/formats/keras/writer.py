"""Writing Keras files: the template's, with other bytes in the datasets of its model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from swavg.errors import OutputError, RequestError
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.commands import with_paths
from swavg.formats.keras.reader import WEIGHTS, open_archive, open_hdf5
from swavg.formats.keras.recipe import Recorded, with_recipe
from swavg.formats.layout import Layout, WriteRequest, opening
from swavg.formats.template import CannotKeep, Replacement, Splice, like_file, replacements
from swavg.formats.tensors import Form
from swavg.formats.zip_layout import (
    Member,
    arranged,
    check_members,
    lay_out_archive,
)
from swavg.formats.zip_recipe import comment_of

_INNER = f"It has one:\nunzip -p FILE {WEIGHTS} > STEM.weights.h5"
Places = Sequence[tuple[str, Form, int, int]]
"""Name, form, source and offset of each tensor of a file."""


def lay_out_hdf5(request: WriteRequest) -> Layout:
    """The template's HDF5 file, with the recipe of the output. RequestError if the template is no
    such file, or its structure cannot be kept."""
    replaced = _replaced(request, "hdf5")
    check = partial(_check_places, planned=_places(request.template, 0), open=open_hdf5)
    file = request.template.sources[0]
    recorded = Recorded(file.size)
    if request.recipe != (request.template.extras.recipe or ""):
        recorded = with_recipe(file, request.recipe)
    tail = recorded.kept, recorded.added
    layout = like_file(request, check, replaced, recorded.edits, tail)
    return Layout((layout,), notes=recorded.notes)


def lay_out_keras(request: WriteRequest) -> Layout:
    """The template's .keras archive. RequestError as :func:`lay_out_hdf5`."""
    replaced, members = _replaced(request, "keras"), request.template.extras.template
    assert isinstance(members, tuple)
    arrangement = tuple(arranged(members))
    splice, shift = Splice(replaced), 0
    for member, placed in zip(members, arrangement, strict=True):
        splice.add(member.start, member.size, placed.start)
        if member.name == WEIGHTS:
            shift = placed.start - member.start
    comment, notes = comment_of(request.recipe)
    planned = _places(request.template, shift)
    layout = lay_out_archive(
        arrangement,
        request.specs,
        splice.tensors,
        splice.offsets,
        kept=splice.kept,
        orders=splice.orders,
        comment=comment,
        check=partial(_check_keras, arrangement=arrangement, planned=planned),
    )
    return Layout((layout,), notes=notes)


def _replaced(request: WriteRequest, format: str) -> list[Replacement]:
    """Where the tensors go in a template of this format."""
    template = request.template
    if template.format != format:
        inner = (template.format, format) == ("keras", "hdf5")
        raise RequestError(
            f"A file of the format {format} has the structure of the last input:"
            f" {template.path} is none.",
            hint=with_paths(_INNER, template.path)
            if inner
            else "Give such a file as the last input, or write a .safetensors file.",
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


def _check_keras(path: str, *, arrangement: Sequence[Member], planned: Places) -> None:
    check_members(path, arrangement)
    _check_places(path, planned=planned, open=open_archive)


def _check_places(path: str, *, planned: Places, open: Callable[[str], Checkpoint]) -> None:
    """OutputError unless h5py finds the tensors in the finished file where they were planned."""
    with opening(path):
        found = _places(open(path), 0)
    if found != planned:
        raise OutputError(path, "the finished file has other tensors than were planned")
