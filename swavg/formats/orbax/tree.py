"""What an Orbax checkpoint lists: its items, their arrays, and which of these are the model."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from swavg.errors import InputError, quoted, some
from swavg.formats import strict_json
from swavg.formats.orbax import METADATA, UNFINISHED
from swavg.formats.safetensors_header import NAME_LIMIT
from swavg.formats.train_state import PARAMS, Path, training_leaves
from swavg.storage.paths import absolute, exists, find_file, is_file, names_in, read_file

_LIMIT = 64 << 20
_NODES = 1_000_000
"""Objects in the JSON of an item, of which each array has a few."""
_EMPTY = ("None", "Dict", "List", "Tuple", "NamedTuple")
"""What stands for a node without arrays."""
_WRAPPERS = ("model", "state", "train_state")


@dataclass(frozen=True, slots=True)
class Item:
    """A folder of arrays. ``ocdbt``: they lie in one database; ``zarr3``: they are of zarr's
    version 3; ``dense``: all chunks are stored, those of zeros too."""

    folder: str
    ocdbt: bool
    zarr3: bool
    dense: bool


@dataclass(frozen=True, slots=True)
class Leaf:
    """An array (or a text) by its ``path`` in the checkpoint; ``stored`` is its name in the
    item."""

    path: Path
    item: Item
    stored: str
    kind: str


@dataclass(frozen=True, slots=True)
class Model:
    """The leaves that are taken, whose names are relative to ``root``; the rest; and which parts of
    the rest may be meant, as dotted paths."""

    root: Path
    leaves: Sequence[Leaf]
    rest: Sequence[Leaf]
    candidates: Sequence[str] = ()


def leaves_in(path: str) -> list[Leaf]:
    """The arrays of all items. InputError for an unfinished checkpoint, and for what is none."""
    if UNFINISHED in os.path.basename(absolute(path)):
        raise InputError(path, "is unfinished: Orbax gives it another name when it is written")
    items: dict[Path, str] = {(): path} if is_file(os.path.join(path, METADATA)) else {}
    for name in [] if items else names_in(path):
        folder = os.path.join(path, name)
        if UNFINISHED in name:
            raise InputError(path, f"is unfinished: '{name}' is still to be renamed")
        if is_file(os.path.join(folder, METADATA)):
            items[() if name == "default" else (name,)] = folder
    if not items:
        raise InputError(
            path,
            f"is an Orbax checkpoint in which no item lists its arrays ({METADATA})",
            hint="An older one can be restored and saved anew with Orbax.",
        )
    leaves = [leaf for prefix, folder in items.items() for leaf in _leaves(prefix, folder)]
    seen: set[str] = set()
    for leaf in leaves:
        name = ".".join(leaf.path)
        if name in seen:
            raise InputError(path, f"has two arrays that are called '{name}'")
        seen.add(name)
    return leaves


def _leaves(prefix: Path, folder: str) -> Iterator[Leaf]:
    """What an item lists, without what is empty."""
    path = os.path.join(folder, METADATA)
    size = find_file(path).size
    text = read_file(path) if size <= _LIMIT else b""
    if size > _LIMIT or text.count(b"{") + text.count(b"[") + text.count(b",") // 4 > _NODES:
        raise InputError(path, "lists more arrays than a checkpoint could hold")
    try:
        content = strict_json.loads(path, text)
        tree = content["tree_metadata"]
        ocdbt = content.get("use_ocdbt")
        if ocdbt is None:
            ocdbt = exists(os.path.join(folder, "manifest.ocdbt"))
        dense = content.get("store_array_data_equal_to_fill_value") is True
        item = Item(folder, bool(ocdbt), content.get("use_zarr3") is True, dense)
        for value in tree.values():
            keys = tuple(str(key["key"]) for key in value["key_metadata"])
            kind = value["value_metadata"]["value_type"]
            if kind not in _EMPTY:
                yield Leaf((*prefix, *keys), item, _checked(path, ".".join(keys)), str(kind))
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        raise InputError(path, "does not list arrays as Orbax does") from None


def _checked(path: str, name: str) -> str:
    """A name that is a place in the item's folder, and in no other."""
    parts = name.split("/")
    if len(name) > NAME_LIMIT or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise InputError(path, f"lists an array {name[:200]!r}, which is no plain name")
    return name


def model_of(path: str, leaves: Sequence[Leaf], key: str | None) -> Model:
    """The collections of a Flax model, below the dotted path ``key`` where that is given; where
    there are none, all that is there but the state of training. InputError if it cannot be told."""
    arrays = [leaf for leaf in leaves if leaf.kind != "string"]
    texts = [leaf for leaf in leaves if leaf.kind == "string"]
    if key is not None:
        return _below(path, arrays, key, texts)
    for depth in (0, 1):
        roots = {leaf.path[:depth]: None for leaf in arrays if leaf.path[depth:][:1] == (PARAMS,)}
        if len(roots) > 1:
            names = [".".join(root) for root in roots]
            raise InputError(
                path,
                f"holds several models: {quoted(names, 8)}",
                hint=f"Choose one with key={names[0]}.",
            )
        for root in roots:
            return _collections(root, arrays, texts)
    chosen, states = _parted(arrays)
    if not chosen:
        raise InputError(path, "holds no arrays that could be a model")
    root = ()
    while len({leaf.path[: len(root) + 1] for leaf in chosen}) == 1 and (
        chosen[0].path[len(root) : -1][:1] in [(name,) for name in _WRAPPERS]
    ):
        root = chosen[0].path[: len(root) + 1]
    return Model(root, chosen, [*states, *texts])


def _below(path: str, arrays: Sequence[Leaf], key: str, texts: Sequence[Leaf]) -> Model:
    root = tuple(key.split(".")) if key else ()
    chosen = [leaf for leaf in arrays if leaf.path[: len(root)] == root]
    if any(leaf.path == root for leaf in chosen):
        raise InputError(path, "key= names an array, not what holds several")
    if not chosen:
        there = some(sorted({leaf.path[0] for leaf in arrays}), 8)
        raise InputError(path, f"has no '{key}'", hint=f"There are: {there}.")
    if root and any(leaf.path[len(root)] == PARAMS for leaf in chosen):
        return _collections(root, arrays, texts)
    rest = [leaf for leaf in arrays if leaf.path[: len(root)] != root]
    return Model(root, chosen, [*rest, *texts])


def _collections(root: Path, arrays: Sequence[Leaf], texts: Sequence[Leaf]) -> Model:
    depth = len(root)
    inside = [leaf for leaf in arrays if leaf.path[:depth] == root]
    chosen, beside = _parted(inside, depth)
    groups = {leaf.path[: depth + 1] for leaf in beside}
    candidates = [".".join(each) for each in groups if re.search("params|ema", each[-1])]
    taken = set(chosen)
    rest = [leaf for leaf in arrays if leaf not in taken]
    return Model(root, chosen, [*rest, *texts], sorted(candidates))


def _parted(leaves: Sequence[Leaf], depth: int = 0) -> tuple[list[Leaf], list[Leaf]]:
    """The model's leaves, and the training's; the first ``depth`` names lead to all."""

    def holds_weights(numbers: Sequence[int]) -> bool:
        from swavg.formats.orbax.arrays import facts_of

        try:
            facts = facts_of([leaves[number] for number in numbers])
            return any(each.shape and each.dtype.floating for each in facts)
        except InputError:
            # What is damaged, and may be no array, is reported where it is a weight.
            return False

    beside = training_leaves([leaf.path[depth:] for leaf in leaves], holds_weights)
    return (
        [leaf for number, leaf in enumerate(leaves) if number not in beside],
        [leaf for number, leaf in enumerate(leaves) if number in beside],
    )
