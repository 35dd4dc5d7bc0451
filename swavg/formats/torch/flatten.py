"""The tensors of a state dict by their dotted names, and the names of what else is in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import NamedTuple

from swavg.errors import InputError
from swavg.formats.strict_json import is_text
from swavg.formats.torch.arrays import are_arrays, array_of
from swavg.formats.torch.holding import CONTAINERS, hides_tensors, holds_arrays
from swavg.formats.torch.objects import (
    HIDDEN,
    Opaque,
    Refused,
    View,
    entries,
    is_optimizer,
    name_of,
)
from swavg.formats.torch.usual_names import is_never

_MAX_NAME = 4096
_MAX_NAMES = 48 << 20
_MAX_ENTRIES = 500_000
_MAX_LOOKS = 20_000
_MAX_NESTING = 100


class Flattened(NamedTuple):
    """The tensors, in order. ``non_tensors`` name what is none; of those ``hidden`` the ones that
    hold tensors in a way of their own, ``arrays`` those that hold NumPy arrays."""

    views: Mapping[str, View | Refused]
    non_tensors: tuple[str, ...]
    hidden: tuple[str, ...]
    arrays: tuple[str, ...]


def flatten(path: str, root: object, holding: Set[int], *, skip_never: bool) -> Flattened:
    """All that is in ``root``, where ``holding`` are the ids of what holds tensors. ``skip_never``:
    what is never the weights, going by its name, is passed over at the top. InputError for names
    that no tensors have, and for parts that repeat without end."""
    if isinstance(root, (View, Refused)):
        raise InputError(path, "key= names a tensor, not a state dict")
    views: dict[str, View | Refused] = {}
    non_tensors: list[str] = []
    hidden: list[str] = []
    arrays: list[str] = []
    room, count, looks = _MAX_NAMES, _MAX_ENTRIES, _MAX_LOOKS
    # Entries in order, one iterator per level; `open_ids` are the containers we are inside of.
    levels: list[tuple[str, object, Iterator[tuple[object, object]]]]
    levels = [("", root, iter(entries(root)))]
    open_ids = {id(root)}
    while levels:
        prefix, node, rest = levels[-1]
        for key, value in rest:
            name = prefix + (key if type(key) is str else name_of(key))
            room -= len(name) if name.isascii() else 4 * len(name)
            count -= 1
            if room < 0 or count < 0:
                raise InputError(path, "its pickle repeats its parts beyond reason")
            if value is HIDDEN:
                continue
            if len(name) > _MAX_NAME:
                raise InputError(path, f"a name of {len(name):,} characters")
            never = skip_never and not prefix and is_never(name, value)
            if type(value) is Opaque and not never and (array := array_of(value)) is not None:
                value = array
            if isinstance(value, (View, Refused)):
                if never:
                    non_tensors.append(name)
                    continue
                if name in views:
                    raise InputError(path, f"two tensors are called '{name}'")
                if not name.isprintable() and ("\0" in name or not is_text(name)):
                    raise InputError(path, f"a tensor's name is no text: {name[:80]!r}")
                views[name] = value
                continue
            inside = not never and id(value) in holding
            look = not never and not inside and looks > 0 and isinstance(value, CONTAINERS)
            looks -= look
            if (inside or (look and are_arrays(value))) and not is_optimizer(value):
                if id(value) in open_ids or len(levels) >= _MAX_NESTING:
                    raise InputError(path, f"'{name[:80]}' is nested without end")
                levels.append((name + ".", value, iter(entries(value))))
                open_ids.add(id(value))
                break
            non_tensors.append(name)
            if look and hides_tensors(value):
                hidden.append(name)
            if look and holds_arrays(value):
                arrays.append(name)
        else:
            levels.pop()
            open_ids.discard(id(node))
    return Flattened(views, tuple(non_tensors), tuple(hidden), tuple(arrays))
