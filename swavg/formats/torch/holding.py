"""Which containers of an object graph hold tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from itertools import islice

from swavg.errors import InputError
from swavg.formats.torch.arrays import is_array
from swavg.formats.torch.objects import (
    Opaque,
    Refused,
    View,
    entries,
    is_optimizer,
    module_state,
)

_MAX_CONTAINERS = 500_000
_SMALL = 8
_NEAR = 100
_TENSORS = (View, Refused)
CONTAINERS = (dict, list, tuple, Opaque)


def holding_tensors(path: str, root: object, max_entries: int, *, arrays: bool = False) -> Set[int]:
    """The ids of ``root`` and of all containers in it that hold a tensor somewhere, optimizer
    state left out; ``arrays``: or a NumPy array.

    Each container is looked into once, however often and in whatever cycles it is referred to.
    InputError beyond ``max_entries`` entries in all.
    """
    # The container in which each was found first, and further ones.
    parents: dict[int, int] = {id(root): 0}
    further: dict[int, list[int]] = {}
    found: list[int] = []
    pending = [root]
    while pending:
        container = pending.pop()
        here = id(container)
        holds = False
        for _, value in entries(container):
            max_entries -= 1
            if max_entries < 0:
                raise InputError(path, "its pickle repeats its parts beyond reason")
            if isinstance(value, _TENSORS) or (arrays and is_array(value)):
                holds = True
            elif isinstance(value, CONTAINERS) and not _is_leaf(value):
                there = id(value)
                if there in parents:
                    further.setdefault(there, []).append(here)
                else:
                    parents[there] = here
                    if not is_optimizer(value):
                        pending.append(value)
        if len(parents) > _MAX_CONTAINERS:
            raise InputError(path, f"its pickle has more than {_MAX_CONTAINERS:,} containers")
        if holds:
            found.append(here)
    holding: set[int] = set()
    while found:
        here = found.pop()
        if here and here not in holding:
            holding.add(here)
            found.append(parents[here])
            found += further.get(here, ())
    return holding


def _is_leaf(value: object) -> bool:
    """Whether a container clearly holds no tensor: a short list of numbers, say."""
    if isinstance(value, Opaque):
        return not value.pairs and module_state(value) is None
    if isinstance(value, (list, tuple)) and len(value) <= _SMALL:
        return not any(isinstance(part, CONTAINERS + _TENSORS) for part in value)
    return not value


def holds_arrays(node: object) -> bool:
    """Whether a NumPy array is among the nearest of its parts."""
    return any(map(is_array, _near(node)))


def hides_tensors(node: object) -> bool:
    """Whether an object of an unknown class has tensors among the nearest of its parts."""
    if not isinstance(node, Opaque) or is_optimizer(node):
        return False
    return any(isinstance(part, _TENSORS) for part in _near(node))


def _near(node: object) -> Iterator[object]:
    """An object and the nearest of its parts."""
    near: list[object] = [node]
    for part in near:
        yield part
        parts: Iterable[object] = ()
        if isinstance(part, Opaque):
            parts = (part.args, part.state, part.items, part.pairs)
        elif isinstance(part, (list, tuple)):
            parts = part
        elif isinstance(part, dict):
            parts = part.values()
        near += islice(parts, _NEAR - len(near) if len(near) < _NEAR else 0)
