"""Opening distributed checkpoints: the tensors of the model, in the boxes that each rank saved."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from swavg.errors import InputError
from swavg.formats.checkpoint import (
    Box,
    Checkpoint,
    Extras,
    Scalar,
    Shape,
    Shared,
    TableBuilder,
    Tensor,
    TensorSpec,
)
from swavg.formats.dcp import boxes
from swavg.formats.dcp.chunks import Found, Wanted, find_chunks
from swavg.formats.dcp.metadata import Chunk, Saved, SavedTensor, read_metadata
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
from swavg.formats.torch.archive import read_archive, read_graph
from swavg.formats.torch.extras import Element, plain_values
from swavg.storage.sources import LocalFile, Pool, Source, read_file

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
    if not os.path.exists(os.path.join(folder, METADATA)):
        raise unfinished(folder)
    side, left_out = side_files(place)
    template = DcpTemplate(place, key, side)
    saved, part = template.read()
    # The pickle is the last of them: nobody may change it meanwhile.
    files = (*saved.files, METADATA)
    sources = tuple(LocalFile.find(os.path.join(folder, name)) for name in files)
    _check_places(saved, sources)
    with Pool() as pool:
        builder = _tensors(folder, saved, part, sources, pool)
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
    return Checkpoint(path, "dcp", sources, builder.build(shared), notes=notes, extras=extras)


def recipe_in(path: str) -> str | None:
    """What swavg wrote of an average beside the weights."""
    place = find_place(path)
    recipe = os.path.join(place.folder, RECIPE) if place is not None else ""
    if not os.path.isfile(recipe):
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


def _tensors(
    folder: str, saved: Saved, part: ModelPart, sources: Sequence[Source], pool: Pool
) -> TableBuilder:
    wanted: list[Wanted] = []
    for name in part.names.values():
        wanted += _wanted(folder, name, saved.tensors[name])
    found = [Found(0, None)] * len(wanted)
    for number, where in find_chunks(pool, sources, wanted):
        found[number] = where
    builder, at = TableBuilder(), 0
    # Many boxes have equal tuples, which are kept once.
    equal: dict[Shape, Shape] = {}
    for local, name in part.names.items():
        tensor = saved.tensors[name]
        dtype = wanted[at].dtype
        places = []
        for chunk in _filled(tensor):
            offset, strides = found[at]
            start, extent = (equal.setdefault(each, each) for each in (chunk.start, chunk.shape))
            places.append(Box(chunk.place.file, offset, start, extent, strides))
            at += 1
        if len(places) == 1:
            (box,) = places
            builder.add(local, (dtype, tensor.shape, box.strides), box.offset, box.source)
        else:
            places.sort(key=lambda box: box.start)
            spec = TensorSpec(local, dtype, tensor.shape)
            builder.add_boxes(Tensor(spec, tuple(places), tensor.shape))
    return builder


def _filled(tensor: SavedTensor) -> Sequence[Chunk]:
    """The chunks that hold elements; the first where none does. Ranks without any save empty ones,
    which all begin where the tensor ends, and of which torch keeps the last one's place."""
    return [chunk for chunk in tensor.chunks if 0 not in chunk.shape] or tensor.chunks[:1]


def _wanted(folder: str, name: str, tensor: SavedTensor) -> Iterator[Wanted]:
    """The chunks of a tensor, which tile it."""
    metadata = os.path.join(folder, METADATA)
    dtype = tensor.known
    if dtype is None or dtype.bits % 8:
        raise InputError(
            metadata, f"'{name[:80]}' is {tensor.dtype[:40]}, which swavg does not know"
        )
    fault = boxes.fault(tensor.shape, [(chunk.start, chunk.shape) for chunk in tensor.chunks])
    if fault is not None or not tensor.chunks:
        raise InputError(metadata, f"'{name[:80]}' is not whole: {fault or 'it has no chunks'}")
    for chunk in _filled(tensor):
        yield Wanted(chunk.place, name, dtype, chunk.shape)


def _progress(saved: Saved, sources: Sequence[Source], pool: Pool) -> dict[str, Scalar]:
    """The counters that torchtitan keeps as tensors."""
    wanted = [
        Wanted(tensor.chunks[0].place, name, tensor.known, tensor.shape)
        for name, tensor in saved.tensors.items()
        if name.startswith(_PROGRESS)
        and tensor.shape == ()
        and len(tensor.chunks) == 1
        and tensor.known is not None
        and tensor.known.kind == "integer"
    ]
    values: dict[str, Scalar] = {}
    for number, where in find_chunks(pool, sources, wanted):
        chunk = wanted[number]
        raw = pool.read(sources[chunk.place.file], where.offset, chunk.dtype.itemsize)
        signed = not chunk.dtype.name.startswith("u")
        values[chunk.name.removeprefix(_PROGRESS)] = int.from_bytes(raw, "little", signed=signed)
    return values


def _values(path: str) -> Mapping[str, Scalar]:
    """The plain values in a torch file beside the checkpoint; none if it cannot be read."""
    if not os.path.isfile(path):
        return {}
    try:
        file = LocalFile.find(path)
        with Pool() as pool:
            read = partial(pool.read, file)
            archive = read_archive(read, path, file.size)
            values = plain_values(path, read_graph(read, archive).top, archive.locate)
    except InputError:
        return {}
    return {name: value for name, value in values.items() if not isinstance(value, Element)}
