"""Writing .npz files: a zip of arrays as they are, which can be streamed."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from functools import partial

from swavg.dtypes import DType
from swavg.errors import OutputError, RequestError
from swavg.formats.layout import Kept, Layout, WriteRequest, losses
from swavg.formats.npz.header import CODES, written
from swavg.formats.npz.reader import SUFFIX
from swavg.formats.tensors import Shape
from swavg.formats.zip_directory import MAX16
from swavg.formats.zip_layout import (
    Member,
    arranged,
    check_members,
    lay_out_archive,
)
from swavg.formats.zip_recipe import comment_of


def lay_out(request: WriteRequest) -> Layout:
    """One file of all tensors, and what else a template of this format holds. RequestError for a
    dtype that NumPy lacks, or a name that a zip cannot have."""
    specs = request.specs
    numbers = range(len(specs))
    orders, sizes = _turned(request), specs.sizes
    members = [
        _member(*specs.at(number), sizes[number], fortran=number in orders) for number in numbers
    ]
    names = {member.name for member in members}
    kept = [each for each in _kept(request) if each.name not in names]
    members += kept
    arrangement = tuple(arranged(members))
    arrays, others = arrangement[: len(specs)], arrangement[len(specs) :]
    comment, notes = comment_of(request.recipe)
    if request.template.format != "npz" and (lost := losses(request)):
        notes = (*notes, f"a .npz holds arrays only: {lost} left out")
    layout = lay_out_archive(
        arrangement,
        specs,
        numbers,
        [placed.start + len(placed.head) for placed in arrays],
        kept=[
            Kept(placed.start, each.start, each.size)
            for placed, each in zip(others, kept, strict=True)
        ],
        orders=orders,
        comment=comment,
        check=partial(_check, arrangement=arrangement),
    )
    return Layout((layout,), notes=notes)


def _member(name: str, dtype: DType, shape: Shape, nbytes: int, *, fortran: bool) -> Member:
    if dtype.name not in CODES:
        raise RequestError(
            f"NumPy has no dtype {dtype}, which '{name}' is.",
            hint="Use dtype=float32, or write a .safetensors file.",
        )
    if "\0" in name or len(name.encode()) + len(SUFFIX) > MAX16:
        raise RequestError(f"A .npz cannot hold an array named {name[:80]!r}.")
    head = written(dtype, shape, fortran=fortran)
    return Member(f"{name}{SUFFIX}", len(head) + nbytes, head)


def _turned(request: WriteRequest) -> dict[int, Shape]:
    """The tensors that lie in Fortran's order in all inputs, and are written so: their axes from
    the slowest to the fastest."""
    table = request.template.tensors
    turned: dict[int, Shape] = {}
    if request.template.format == "npz" and request.alike:
        for number, name in enumerate(request.specs.names):
            at = table.index.get(name)
            _, shape, strides = (None, (), None) if at is None else table.form_of(at)
            if strides is not None and shape == request.specs.at(number)[2]:
                turned[number] = tuple(reversed(range(len(shape))))
    return turned


def _kept(request: WriteRequest) -> tuple[Member, ...]:
    """The template's members that hold no numbers."""
    if request.weights_only or request.template.format != "npz":
        return ()
    found = request.template.extras.template
    assert isinstance(found, tuple)
    return found


def _check(path: str, *, arrangement: Sequence[Member]) -> None:
    """OutputError unless the finished file has just these members, and NumPy opens it."""
    import numpy as np

    check_members(path, arrangement)
    try:
        with np.load(path, allow_pickle=False) as archive:
            count = len(archive.files)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise OutputError(path, f"NumPy rejects it: {error}") from error
    if count != len(arrangement):
        raise OutputError(path, "NumPy reads other arrays than were written")
