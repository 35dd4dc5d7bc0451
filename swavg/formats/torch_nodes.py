"""The objects of an unpickled torch file as a graph: containers, modules, and what is in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from swavg.formats.torch_values import Global, Opaque, Refused, View

_NEAR = 100


def mapping(node: Any) -> dict[Any, Any] | None:
    """The entries of a dictionary, of a pickled module, or of a dictionary-like object."""
    if isinstance(node, dict):
        return node
    if not isinstance(node, Opaque):
        return None
    module = module_state(node)
    if module is None:
        return node.pairs or None
    hidden = _names(module.get("_non_persistent_buffers_set"))
    entries: dict[Any, Any] = {}
    for part in ("_parameters", "_buffers", "_modules"):
        members = module.get(part)
        for name, value in (mapping(members) or {}).items():
            if value is not None and not (part == "_buffers" and name in hidden):
                entries[name] = value
    return entries


def module_state(node: Any) -> dict[Any, Any] | None:
    state = node.state if isinstance(node, Opaque) else None
    if isinstance(state, tuple) and len(state) == 2:
        state = state[0]
    if isinstance(state, dict) and "_parameters" in state and "_modules" in state:
        return state
    return None


def class_name(node: Any) -> str | None:
    """The class of a pickled module."""
    if module_state(node) is None:
        return None
    return f"{node.of.module}.{node.of.name}" if isinstance(node.of, Global) else "of a module"


def _names(node: Any) -> set[str]:
    """The strings of a pickled set."""
    if isinstance(node, Opaque):
        first = node.args[0] if isinstance(node.args, tuple) and node.args else ()
        found = [*node.items, *(first if isinstance(first, (list, tuple)) else ())]
        return {name for name in found if isinstance(name, str)}
    return set()


def is_optimizer(node: Any) -> bool:
    entries = mapping(node)
    return entries is not None and "param_groups" in entries and "state" in entries


def is_walkable(node: Any) -> bool:
    return isinstance(node, (dict, list, tuple, View, Refused, Opaque))


def children(node: Any) -> list[Any]:
    if isinstance(node, (list, tuple)):
        return list(node)
    return list((mapping(node) or {}).values())


def hides(node: Any) -> bool:
    """Whether an object of an unknown class has tensors among the nearest of its parts."""
    if not isinstance(node, Opaque) or is_optimizer(node):
        return False
    near: list[Any] = [node]
    seen = 0
    while near and seen < _NEAR:
        part = near.pop(0)
        seen += 1
        if isinstance(part, (View, Refused)):
            return True
        if isinstance(part, Opaque):
            near += [part.args, part.state, part.items, part.pairs]
        elif isinstance(part, (list, tuple)):
            near += part[:_NEAR]
        elif isinstance(part, dict):
            near += list(part.values())[:_NEAR]
    return False


def members(node: Any) -> Iterator[tuple[str, Any]]:
    """The members of a container with the names they get."""
    if isinstance(node, (list, tuple)):
        yield from ((str(index), value) for index, value in enumerate(node))
    else:
        yield from ((_name(key), value) for key, value in (mapping(node) or {}).items())


def _name(key: Any) -> str:
    """A dictionary's key as a name."""
    if isinstance(key, str):
        return key
    if isinstance(key, bytes):
        return key.decode("utf-8", "backslashreplace")
    if type(key) is int and key.bit_length() >= 64:
        return "?"
    if type(key) is tuple:
        return f"({', '.join(map(_name, key))})"
    if isinstance(key, Global):
        return f"{key.module}.{key.name}"
    return str(key) if key is None or type(key) in (int, float, bool) else "?"
