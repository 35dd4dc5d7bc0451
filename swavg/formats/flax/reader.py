"""Opening Flax files: the parameters of a model, and not the state of its optimizer."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from functools import partial

from swavg.dtypes import BY_NAME, DType
from swavg.errors import InputError, NoWeightsError, some
from swavg.formats.checkpoint import (
    Box,
    Checkpoint,
    Extras,
    Scalar,
    Shared,
    TableBuilder,
    Tensor,
    TensorSpec,
)
from swavg.formats.flax.scan import Array, Chunked, Leaf, Node, scan
from swavg.storage.sources import LocalFile, Pool

_MODEL = ("params", "batch_stats", "ema_params")
_NOT_MODEL = ("opt_state", "optimizer", "opt", "step")
_MAX_NAME = 4096


def open_flax(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    """Open a file of flax.serialization; names are dotted paths in its tree. ``key`` is that of
    the parameters. InputError if it is damaged, or holds none."""
    file = LocalFile.find(path)
    with Pool() as pool:
        read = partial(pool.read, file)
        tree = scan(read, path, file.size)
        if not isinstance(tree, dict):
            raise NoWeightsError(path, "holds no parameters")
        chosen, left = _chosen(path, tree, key)
        builder, others = TableBuilder(), []
        seen: set[str] = set()
        for name, leaf in _leaves(path, chosen, ""):
            if name in seen or len(name) > _MAX_NAME:
                raise InputError(path, f"two of its names are '{name[:80]}', or it is too long")
            seen.add(name)
            arrays = _arrays(leaf)
            if not arrays or (dtype := _dtype(path, name, arrays)) is None:
                others.append(name)
            elif isinstance(leaf, Chunked):
                builder.add_boxes(_joined(name, dtype, leaf))
            else:
                builder.add(name, (dtype, arrays[0].shape, None), arrays[0].offset)
        scalars = {name: value for name, node in tree.items()
                   if (value := _scalar(pool, file, node)) is not None}  # fmt: skip
    table = builder.build(shared)
    if not len(table):
        raise NoWeightsError(path, "holds no parameters")
    notes = []
    for what, names in (("not of the model", left), ("no arrays of numbers", others)):
        if names:
            shown = some([f"'{name}'" for name in names], 5)
            notes.append(f"{shown}: {what}")
    extras = Extras(scalars=scalars, root_key=key, others=tuple(left), non_tensors=tuple(others))
    return Checkpoint(path, "flax", (file,), table, notes=tuple(notes), extras=extras)


def _chosen(path: str, tree: dict[str, Node], key: str | None) -> tuple[dict[str, Node], list[str]]:
    """The part of the tree that is the model, and the names at the top that are not."""
    if key:
        node: Node = tree
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise InputError(path, f"has no '{key}'", hint=f"It has {', '.join(list(tree)[:9])}.")
        return node, []
    if isinstance(tree.get("params"), dict):
        chosen = {name: tree[name] for name in tree if name in _MODEL}
    else:
        chosen = {name: node for name, node in tree.items() if name not in _NOT_MODEL}
    return chosen, [name for name in tree if name not in chosen]


def _leaves(path: str, node: Mapping[str, Node], prefix: str) -> Iterator[tuple[str, Leaf]]:
    """Dotted name and value of all that lies in a map."""
    for key, inner in node.items():
        if isinstance(inner, dict):
            yield from _leaves(path, inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def _arrays(leaf: Leaf) -> tuple[Array, ...]:
    """What a value's bytes lie in: none if it is no array."""
    if isinstance(leaf, Chunked):
        return leaf.chunks
    return (leaf,) if isinstance(leaf, Array) else ()


def _dtype(path: str, name: str, arrays: tuple[Array, ...]) -> DType | None:
    """The dtype of a tensor whose bytes are just those of its shape; None for text."""
    text = arrays[0].dtype
    dtype = BY_NAME.get(text)
    if dtype is None or dtype.bits < 8:
        if text.startswith(("str", "bytes")):
            return None
        raise InputError(path, f"'{name}' has the dtype {text:.40}, which swavg does not know")
    for array in arrays:
        nbytes = dtype.nbytes(math.prod(array.shape))
        if nbytes != array.nbytes:
            shape = list(array.shape)
            raise InputError(
                path, f"'{name}' is {shape} of {dtype}, {nbytes:,} bytes, but has {array.nbytes:,}"
            )
    return dtype


def _joined(name: str, dtype: DType, leaf: Chunked) -> Tensor:
    """A tensor whose elements lie in chunks, in their row-major order."""
    boxes, start = [], 0
    for array in leaf.chunks:
        numel = math.prod(array.shape)
        boxes.append(Box(0, array.offset, (start,), (numel,)))
        start += numel
    return Tensor(TensorSpec(name, dtype, leaf.shape), tuple(boxes), (start,))


_STRUCT = {
    "int32": "<i", "uint32": "<I", "int64": "<q", "uint64": "<Q", "float32": "<f", "float64": "<d",
}  # fmt: skip


def _scalar(pool: Pool, file: LocalFile, node: Node) -> Scalar | None:
    """A plain value, or the only element of an array without dimensions."""
    if isinstance(node, (int, float, str)):
        return node
    code = _STRUCT.get(node.dtype) if isinstance(node, Array) and not node.shape else None
    if not isinstance(node, Array) or code is None or node.nbytes != struct.calcsize(code):
        return None
    value: float = struct.unpack(code, pool.read(file, node.offset, node.nbytes))[0]
    return value
