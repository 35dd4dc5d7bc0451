"""Opening distributed checkpoints: the tensors of the model, in the boxes that each rank saved."""

from __future__ import annotations

import os
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from swavg.dtypes import DType
from swavg.errors import InputError
from swavg.formats.checkpoint import Checkpoint, Extras, Scalar
from swavg.formats.dcp.chunks import find_chunks
from swavg.formats.dcp.metadata import read_metadata
from swavg.formats.dcp.model_part import ModelPart, find_model
from swavg.formats.dcp.place import (
    METADATA,
    RECIPE,
    Place,
    check_one_model,
    find_place,
    side_files,
    unfinished,
)
from swavg.formats.dcp.saved import BoxColumns, Chunk, ChunkColumns, Saved, SavedTensor
from swavg.formats.overlaps import fault
from swavg.formats.tensors import Made, Shape, Shared, TableBuilder, TensorSpec, TensorTable
from swavg.formats.torch.archive import read_archive, read_graph
from swavg.formats.torch.extras import Element, plain_values
from swavg.storage.paths import exists, find_part, is_file, read_file, reading
from swavg.storage.pool import Pool
from swavg.storage.sources import Source

_RECIPE_LIMIT = 64 << 20
_SIDE_VALUES = ("meta.pt", "common.pt")
"""Where Lightning and Megatron-LM keep step and epoch."""
_PROGRESS = "train_state."
"""Where torchtitan does."""
_LISTED = 6


@dataclass(frozen=True, slots=True)
class DcpTemplate:
    """What a writer needs to keep all else: where it lies, the key that was asked for, and paths of
    files that go along, by name. What the folder holds is read again by the one who writes: it
    takes much memory."""

    place: Place
    key: str | None
    side_files: Mapping[str, str]

    def read(self) -> tuple[Saved, ModelPart]:
        """What the folder holds, and which of it is the model."""
        saved = read_metadata(self.place.folder)
        return saved, find_model(self.place.folder, saved, self.key)


def open_dcp(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    """Open the distributed checkpoint in the folder ``path``; ``key`` is the dotted path of the
    state dict in it. Nothing of it is run. InputError if it is damaged, unsafe or unfinished."""
    place = find_place(path)
    assert place is not None
    check_one_model(place)
    folder = place.folder
    if not exists(os.path.join(folder, METADATA)):
        raise unfinished(folder)
    side, left_out = side_files(place)
    template = DcpTemplate(place, key, side)
    saved, part = template.read()
    # The pickle is the last of them: nobody may change it meanwhile.
    files = (*saved.files, METADATA)
    sources = tuple(find_part(os.path.join(folder, name), path) for name in files)
    _check_places(saved, sources)
    with Pool() as pool:
        specs = [_spec(folder, *names, saved.tensors[names[1]]) for names in part.names.items()]
        table = _table(saved, [*part.names.values()], specs, sources, pool, shared)
        scalars = _progress(saved, sources, pool)
    for name in _SIDE_VALUES:
        scalars |= _values(os.path.join(folder, name))
    extras = Extras(
        scalars=scalars,
        recipe=recipe_in(path),
        root_key=part.root_key,
        others=part.others,
        non_tensors=part.objects,
        left_out=left_out,
        template=template,
    )
    # What lies beside it is said of each output.
    taken = (f"the model is under '{part.root_key}'",) if part.others and part.root else ()
    notes = (*part.notes, *taken)
    return Checkpoint(path, "dcp", sources, table, notes=notes, extras=extras)


def recipe_in(path: str) -> str | None:
    """What swavg wrote of an average beside the weights."""
    place = find_place(path)
    recipe = os.path.join(place.folder, RECIPE) if place is not None else ""
    if not is_file(recipe):
        return None
    return read_file(recipe, _RECIPE_LIMIT).decode(errors="replace")


def _check_places(saved: Saved, sources: Sequence[Source]) -> None:
    """InputError if bytes that are copied as they are would lie beyond a file."""
    for name, at in saved.everything():
        if at.offset + at.length > sources[at.file].size:
            raise InputError(
                sources[at.file].name,
                f"truncated: '{name[:80]}' ends at byte {at.offset + at.length:,}, the file has"
                f" {sources[at.file].size:,}",
            )


def _table(
    saved: Saved,
    names: Sequence[str],
    specs: Sequence[TensorSpec],
    sources: Sequence[Source],
    pool: Pool,
    shared: Shared | None,
) -> TensorTable:
    """The tensors of these full names, as ``specs`` describe them."""
    chunks, owners, firsts = ChunkColumns(), array("I"), array("I", [0])
    for number, name in enumerate(names):
        for chunk in sorted(_filled(saved.tensors[name]), key=lambda chunk: chunk.start):
            chunks.add(*chunk)
            owners.append(number)
        firsts.append(len(chunks))

    def described(number: int) -> tuple[str, DType]:
        return names[owners[number]], specs[owners[number]].dtype

    offsets = array("q", chunks.offsets)
    strides: dict[int, Shape] = {}
    for number, found in find_chunks(pool, sources, chunks, described):
        offsets[number] = found.offset
        if found.strides is not None:
            strides[number] = found.strides
    columns = BoxColumns(chunks.starts, chunks.shapes, chunks.files, offsets, strides)
    builder = TableBuilder()
    several: dict[int, tuple[TensorSpec, int, int]] = {}
    for number, (spec, (first, stop)) in enumerate(zip(specs, pairwise(firsts), strict=True)):
        own = None if stop - first > 1 else strides.get(first)
        builder.add(spec.name, (spec.dtype, spec.shape, own), offsets[first], chunks.files[first])
        if stop - first > 1:
            several[number] = spec, first, stop
    return builder.build(shared, Made(several, columns.tensor))


def _filled(tensor: SavedTensor) -> Sequence[Chunk]:
    """The chunks that hold elements; the first where none does. Ranks without any save empty ones,
    which all begin where the tensor ends, and of which torch keeps the last one's place."""
    return [chunk for chunk in tensor.chunks if 0 not in chunk.shape] or tensor.chunks[:1]


def _spec(folder: str, local: str, name: str, tensor: SavedTensor) -> TensorSpec:
    """The tensor ``name``, in the model ``local``; its chunks tile it."""
    metadata = os.path.join(folder, METADATA)
    dtype = tensor.known
    if dtype is None or dtype.bits % 8:
        raise InputError(
            metadata, f"'{name[:80]}' is {tensor.dtype[:40]}, which swavg does not know"
        )
    wrong = fault(tensor.shape, [(chunk.start, chunk.shape) for chunk in tensor.chunks])
    if wrong is not None or not tensor.chunks:
        raise InputError(metadata, f"'{name[:80]}' is not whole: {wrong or 'it has no chunks'}")
    return TensorSpec(local, dtype, tensor.shape)


def _progress(saved: Saved, sources: Sequence[Source], pool: Pool) -> dict[str, Scalar]:
    """The counters that torchtitan keeps as tensors."""
    counters: list[tuple[str, DType]] = []
    chunks = ChunkColumns()
    for name, tensor in saved.tensors.items():
        dtype = tensor.known
        if (
            name.startswith(_PROGRESS)
            and tensor.shape == ()
            and len(tensor.chunks) == 1
            and dtype is not None
            and dtype.kind == "integer"
        ):
            counters.append((name, dtype))
            chunks.add((), (), tensor.chunks[0].place)
    values: dict[str, Scalar] = {}
    for number, found in find_chunks(pool, sources, chunks, counters.__getitem__):
        name, dtype = counters[number]
        raw = pool.read(sources[chunks.files[number]], found.offset, dtype.itemsize)
        values[name.removeprefix(_PROGRESS)] = dtype.number(raw)
    return values


def _values(path: str) -> Mapping[str, Scalar]:
    """The plain values in a torch file beside the checkpoint; none if it cannot be read."""
    if not is_file(path):
        return {}
    try:
        with reading(path) as (file, read):
            archive = read_archive(read, path, file.size)
            values = plain_values(path, read_graph(read, archive).top, archive.locate)
    except InputError:
        return {}
    return {name: value for name, value in values.items() if not isinstance(value, Element)}
