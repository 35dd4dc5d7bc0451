"""Shards as torch's HuggingFaceStorageWriter saves them: each rank's part of each tensor in
safetensors files of its own, which nothing but these files describes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from swavg.errors import InputError, some
from swavg.formats import strict_json
from swavg.formats.checkpoint import Checkpoint, Extras
from swavg.formats.layout import Format
from swavg.formats.overlaps import fault
from swavg.formats.part_names import RANK_SHARD
from swavg.formats.safetensors import open_safetensors
from swavg.formats.tensors import Box, Shape, Shared, TableBuilder, Tensor, TensorSpec
from swavg.storage.paths import names_if_any, names_in
from swavg.storage.sources import Source

_INNER = "sharded"
"""The folder that torchtitan has them in, before it joins them."""
_INFO = "DCP_SHARDING_INFO"
_OWN = (_INFO, "DCP_VERSION")
_MAX_DIMENSIONS = 64


def _shards_in(path: str) -> list[str]:
    """The names of a folder's shards; none if there are other weights, which were joined."""
    names = names_if_any(path)
    shards = sorted(filter(RANK_SHARD.fullmatch, names))
    others = [name for name in names if name.endswith((".safetensors", ".index.json"))]
    return shards if len(shards) == len(others) else []


def _folder(path: str) -> str | None:
    """The folder of the shards that ``path`` stands for."""
    if _shards_in(path):
        return path
    inner = os.path.join(path, _INNER)
    if _shards_in(inner) and not any(name.endswith(".safetensors") for name in names_in(path)):
        return inner
    return None


def open_shards(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    """Open all shards of a folder. InputError unless the parts of each tensor tile it.

    ``key`` means nothing here.
    """
    folder = _folder(path)
    assert folder is not None
    names = _shards_in(folder)
    sources: list[Source] = []
    parts: dict[str, list[tuple[Tensor, Shape, int]]] = {}
    metadata: dict[str, str] = {}
    for name in names:
        file = os.path.join(folder, name)
        shard = open_safetensors(file, shared=shared)
        offsets = _offsets(file, shard.metadata.get(_INFO))
        for own, tensor in shard.tensors.items():
            start = offsets.get(own, (0,) * len(tensor.spec.shape))
            if len(start) != len(tensor.spec.shape):
                raise InputError(file, f"'{own[:80]}' has an offset of other dimensions")
            parts.setdefault(own, []).append((tensor, start, len(sources)))
        for text, value in shard.metadata.items():
            if text not in _OWN:
                metadata.setdefault(text, value)
        sources += shard.sources
    builder = TableBuilder()
    for own, pieces in parts.items():
        builder.add_boxes(_joined(folder, own, pieces))
    extras = Extras(scalars=metadata, recipe=metadata.get("swavg"))
    return Checkpoint(
        path, "hf-shards", tuple(sources), builder.build(shared), metadata, _gaps(names), extras
    )


def _offsets(file: str, text: str | None) -> Mapping[str, Shape]:
    """Where each tensor of a shard begins in the whole one."""
    if text is None:
        raise InputError(file, f"is one of several shards, and does not say which ({_INFO})")
    try:
        content = strict_json.loads(file, text)
        found = {name: tuple(entry["saved_offsets"]) for name, entry in content.items()}
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        raise InputError(file, f"its {_INFO} cannot be read") from None
    for name, start in found.items():
        if len(start) > _MAX_DIMENSIONS or not all(
            type(value) is int and 0 <= value < 1 << 62 for value in start
        ):
            raise InputError(file, f"'{name[:80]}' has an impossible offset")
    return found


def _joined(folder: str, name: str, pieces: Sequence[tuple[Tensor, Shape, int]]) -> Tensor:
    """The whole tensor of its parts, each with where it begins and the number of its source."""
    first = pieces[0][0].spec
    if any(
        (tensor.spec.dtype, len(tensor.spec.shape)) != (first.dtype, len(first.shape))
        for tensor, _, _ in pieces
    ):
        raise InputError(folder, f"'{name[:80]}' has other dtypes or dimensions in some shards")
    shape = tuple(
        max(start[axis] + tensor.spec.shape[axis] for tensor, start, _ in pieces)
        for axis in range(len(first.shape))
    )
    wrong = fault(shape, [(start, tensor.spec.shape) for tensor, start, _ in pieces])
    if wrong is not None:
        raise InputError(
            folder, f"'{name[:80]}' is not whole: {wrong}", hint="Are all shards here?"
        )
    boxes = tuple(
        Box(source, tensor.boxes[0].offset, start, tensor.spec.shape)
        for tensor, start, source in sorted(pieces, key=lambda piece: piece[1])
        if 0 not in tensor.spec.shape or len(pieces) == 1
    )
    if not boxes:
        boxes = (Box(pieces[0][2], pieces[0][0].boxes[0].offset, (0,) * len(shape), shape),)
    return Tensor(TensorSpec(name, first.dtype, shape), boxes, shape)


def _gaps(names: Sequence[str]) -> tuple[str, ...]:
    """Notes if shards seem to be missing: of some rank, or all of one of the numbers of which each
    rank has as many as it needs."""
    matches = [*filter(None, map(RANK_SHARD.fullmatch, names))]
    missing = {
        "of rank": sorted({*_up_to(match[1] for match in matches)} - {int(m[1]) for m in matches}),
        "numbered": sorted({*_up_to(match[3] for match in matches)} - {int(m[2]) for m in matches}),
    }
    return tuple(
        f"there is no shard {what} {some([str(number) for number in numbers], 8)}: are all here?"
        for what, numbers in missing.items()
        if numbers
    )


def _up_to(numbers: Iterable[str]) -> range:
    return range(1, max(map(int, numbers)) + 1)


FORMAT = Format(
    "hf-shards", (), lambda head: False, open_shards,
    holds=lambda path: _folder(path) is not None,
)  # fmt: skip
