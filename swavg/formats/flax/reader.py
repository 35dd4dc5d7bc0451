"""Opening Flax files: the parameters of a model, and not the state of its optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from swavg.dtypes import BY_NAME, DType
from swavg.errors import InputError, NoWeightsError, quoted
from swavg.formats.blocks import Read
from swavg.formats.checkpoint import Checkpoint, Extras, Scalar
from swavg.formats.flax.scan import Array, Chunked, Leaf, Node, scan
from swavg.formats.tensors import Box, Shared, TableBuilder, Tensor, TensorSpec
from swavg.formats.train_state import Path, groups_of, training_leaves
from swavg.storage.paths import reading

_AVERAGE = "ema_params"
"""A copy of the parameters that is averaged too."""
_MAX_NAME = 4096

Named = tuple[Path, Leaf]


def open_flax(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    """Open a file of flax.serialization; names are dotted paths in its tree. ``key`` is that of
    the parameters. InputError if it is damaged, or holds none."""
    with reading(path) as (file, read):
        tree = scan(read, path, file.size)
        if not isinstance(tree, dict):
            raise NoWeightsError(path, "holds no parameters")
        leaves, left = _chosen(path, tree, key)
        builder, others = TableBuilder(), []
        seen: set[str] = set()
        for keys, leaf in leaves:
            name = ".".join(keys)
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
                   if (value := _scalar(read, node)) is not None}  # fmt: skip
    table = builder.build(shared)
    if not len(table):
        raise NoWeightsError(path, "holds no parameters")
    notes = []
    for what, names in (("not of the model", left), ("no arrays of numbers", others)):
        if names:
            notes.append(f"{quoted(names, 5)}: {what}")
    extras = Extras(scalars=scalars, root_key=key, others=tuple(left), non_tensors=tuple(others))
    return Checkpoint(path, "flax", (file,), table, notes=tuple(notes), extras=extras)


def _chosen(path: str, tree: dict[str, Node], key: str | None) -> tuple[list[Named], list[str]]:
    """The leaves of the model, and the dotted paths of what is beside it."""
    if key:
        node: Node = tree
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise InputError(path, f"has no '{key}'", hint=f"It has {', '.join(list(tree)[:9])}.")
        return list(_leaves(node, ())), []
    leaves = list(_leaves(tree, ()))

    def holds_weights(numbers: Sequence[int]) -> bool:
        found = (leaves[number][1] for number in numbers)
        return any(_arrays(leaf) and _is_weight(leaf) for leaf in found)

    beside = training_leaves([keys for keys, _ in leaves], holds_weights)
    beside -= {number for number in beside if leaves[number][0][0] == _AVERAGE}
    chosen = [named for number, named in enumerate(leaves) if number not in beside]
    left = (leaves[number][0] for number in sorted(beside))
    return chosen, groups_of(left, (keys for keys, _ in chosen))


def _is_weight(leaf: Leaf) -> bool:
    """Whether an array is of floats and has dimensions."""
    dtype = BY_NAME.get(_arrays(leaf)[0].dtype)
    shape = leaf.shape if isinstance(leaf, Array | Chunked) else ()
    return bool(shape) and dtype is not None and dtype.floating


def _leaves(node: Mapping[str, Node], above: Path) -> Iterator[Named]:
    """Path and value of all that lies in a map."""
    for key, inner in node.items():
        if isinstance(inner, dict):
            yield from _leaves(inner, (*above, key))
        else:
            yield (*above, key), inner


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


def _scalar(read: Read, node: Node) -> Scalar | None:
    """A plain value, or the only element of an array without dimensions."""
    if isinstance(node, (int, float, str)):
        return node
    if not isinstance(node, Array) or node.shape:
        return None
    dtype = BY_NAME.get(node.dtype)
    if dtype is None or dtype.kind not in ("float", "integer") or dtype.bits != 8 * node.nbytes:
        return None
    return dtype.number(read(node.offset, node.nbytes))
