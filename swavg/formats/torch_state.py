"""Finding the state dict in an unpickled torch checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swavg.errors import InputError
from swavg.formats.torch_nodes import (
    children,
    class_name,
    hides,
    is_optimizer,
    is_walkable,
    mapping,
    members,
    module_state,
)
from swavg.formats.torch_values import Refused, View

# Where trainers put the weights, in order of preference: plain ones, then moving averages.
_PLAIN = (
    "state_dict", "model_state_dict", "model", "module", "net", "network", "params", "generator",
    "weights", "model_state", "model_dict", "net_state_dict", "network_state_dict", "params_dict",
)  # fmt: skip
_EMA = (
    "state_dict_ema", "model_ema", "ema", "ema_state_dict", "ema_model", "model_ema_state_dict",
    "params_ema", "g_ema", "G_ema", "shadow_params", "shadow", "averaged_model", "swa_model",
)  # fmt: skip
# What is never the weights: dictionaries of these names, and tensors that hold a generator's state.
_NEVER = re.compile(
    r"(.*_)?(optim|optims|optimi[sz]ers?|sched|schedulers?|scaler|amp|rng|callbacks|loops|hparams"
    r"|hyper_?parameters|config|cfg|args)(_?states?)?(_?dicts?)?_?\d*",
    re.IGNORECASE,
)
_RANDOM = re.compile(r"(.*_)?rng(_states?)?(_.*)?", re.IGNORECASE)
_DEPTH = 3
_MAX_NAME = 4096
_MAX_NAMES = 64 << 20
_MAX_NESTING = 100
_LISTED = 8


@dataclass(frozen=True)
class State:
    """The chosen state dict: ``views`` by dotted name. ``root_key`` is the dotted path to it, empty
    for the top level. ``non_tensors`` are names in it that hold no tensor, ``other_entries`` the
    top-level keys outside it (and the class of a pickled module), ``scalars`` the plain values
    at the top level."""

    root_key: str
    views: Mapping[str, View | Refused]
    non_tensors: tuple[str, ...]
    other_entries: tuple[str, ...]
    scalars: Mapping[str, int | float | str]
    notes: tuple[str, ...]


def find_state(path: str, top: Any, room: int, key: str | None = None) -> State:
    """The state dict in ``top``, under ``key`` if one is given (``""`` is the top level itself).

    At most ``room`` entries are visited: the bytes of the pickle, which an honest file cannot
    exceed. InputError if there is none, or more than one that could be meant.
    """
    search = _Search(path, room)
    if key is not None:
        root_key, node = key, search.follow(top, key)
        notes: tuple[str, ...] = ()
        if key and is_optimizer(node):
            raise InputError(path, f"'{key}' is the state of an optimizer, which is not averaged")
    else:
        root_key, node, notes = search.locate(top)
    # Below a usual name, and in a module, every tensor belongs to the model.
    skip_never = key is None and not root_key and module_state(node) is None
    views, non_tensors, hidden = search.flatten(node, skip_never=skip_never)
    if hidden:
        shown = ", ".join(f"'{name[:80]}'" for name in hidden[:_LISTED])
        notes = (*notes, f"tensors inside {shown} are not averaged: swavg does not know its kind")
    if not views:
        raise InputError(path, f"no tensors under '{root_key}'" if root_key else "holds no tensors")
    entries = mapping(top) or {}
    first = root_key if root_key in entries else root_key.split(".")[0]
    others = tuple(str(name) for name in entries if root_key and str(name) != first)
    if not root_key:
        others = tuple(name for name in non_tensors if "." not in name)
    if (kind := class_name(node)) is not None:
        others = (*others, f"class {kind}")
    scalars = {
        name: value
        for name, value in entries.items()
        if isinstance(name, str) and _is_scalar(value)
    }
    return State(root_key, views, non_tensors, others, scalars, notes)


def _is_scalar(value: Any) -> bool:
    if type(value) is int:
        return value.bit_length() < 64
    return type(value) is float or (type(value) is str and len(value) <= 1000)


def _is_never(name: Any, node: Any) -> bool:
    """Whether an entry at the top level is none of the weights, going by its name."""
    pattern = _RANDOM if isinstance(node, (View, Refused)) else _NEVER
    return isinstance(name, str) and pattern.fullmatch(name) is not None


class _Search:
    """One walk over one file's object graph, which may hold cycles and shared parts."""

    def __init__(self, path: str, room: int) -> None:
        self.path = path
        self.room = room
        self._holding: dict[int, bool] = {}

    def holds_tensors(self, node: Any) -> bool:
        """Whether a tensor is anywhere in ``node``, optimizer state left out."""
        pending, seen = [node], {id(node)}
        while pending:
            current = pending.pop()
            if isinstance(current, (View, Refused)) or self._holding.get(id(current)):
                self._holding[id(node)] = True
                return True
            if id(current) in self._holding or is_optimizer(current):
                continue
            for child in children(current):
                if id(child) not in seen and is_walkable(child):
                    seen.add(id(child))
                    pending.append(child)
        for known in seen:
            self._holding[known] = False
        return False

    def locate(self, top: Any) -> tuple[str, Any, tuple[str, ...]]:
        """Path and node of the state dict, and notes on what else could have been meant."""
        if isinstance(top, (View, Refused)):
            raise InputError(self.path, "holds a single tensor, not a state dict")
        if isinstance(top, (list, tuple)) or module_state(top) is not None:
            return "", top, ()
        entries = mapping(top)
        if entries is None:
            raise InputError(self.path, "holds no state dict")
        candidates = [name for name in entries if self._may_be_meant(name, entries[name])]
        chosen = next((name for name in (*_PLAIN, *_EMA) if name in candidates), None)
        if chosen is None:
            direct = [
                value
                for name, value in entries.items()
                if isinstance(value, (View, Refused)) and not _is_never(name, value)
            ]
            weights = [view for view in direct if not (isinstance(view, View) and not view.size)]
            if weights or (direct and not candidates):
                return "", top, ()
            if len(candidates) > 1:
                listed = ", ".join(f"'{name}'" for name in candidates[:_LISTED])
                raise InputError(
                    self.path,
                    f"several state dicts could be meant: {listed}",
                    hint=f"Choose one with --key {candidates[0]}, or all with --key ''.",
                )
            if not candidates:
                raise InputError(self.path, "holds no tensors that could be a state dict")
            chosen = candidates[0]
        parts, node = self._deeper([chosen], entries[chosen])
        root_key = ".".join(parts)
        others = [str(name) for name in candidates if name != chosen]
        notes = tuple(
            f"state dict found under '{root_key}'; there is also '{name}'"
            f" (choose it with --key {name})"
            for name in others[:_LISTED]
        )
        return root_key, node, notes

    def _may_be_meant(self, name: Any, node: Any) -> bool:
        if not isinstance(name, str) or isinstance(node, (View, Refused)) or is_optimizer(node):
            return False
        return not _is_never(name, node) and self.holds_tensors(node)

    def _deeper(self, parts: list[str], node: Any) -> tuple[list[str], Any]:
        """Down through wrappers such as ``model.state_dict``, as long as nothing is left behind
        but optimizer state and moving averages."""
        while len(parts) < _DEPTH and module_state(node) is None:
            entries = mapping(node)
            if entries is None or any(isinstance(v, (View, Refused)) for v in entries.values()):
                break
            names = [name for name in entries if self._may_be_meant(name, entries[name])]
            plain = [name for name in names if name not in _EMA] or names
            if len(plain) != 1 or plain[0] not in (*_PLAIN, *_EMA):
                break
            parts, node = [*parts, plain[0]], entries[plain[0]]
        return parts, node

    def follow(self, top: Any, key: str) -> Any:
        """The node at the dotted path ``key``; keys may hold dots themselves."""
        node, rest = top, key
        while rest:
            entries = dict(members(node))
            ends = [i for i in range(len(rest) + 1) if i == len(rest) or rest[i] == "."]
            end = next((i for i in reversed(ends) if rest[:i] in entries), None)
            if end is None:
                raise InputError(
                    self.path,
                    f"has no '{key}'",
                    hint=f"There are: {_listing(entries)}." if entries else None,
                )
            node, rest = entries[rest[:end]], rest[end + 1 :]
        return node

    def flatten(
        self, root: Any, *, skip_never: bool
    ) -> tuple[dict[str, View | Refused], tuple[str, ...], tuple[str, ...]]:
        """All tensors of ``root`` by dotted name in order, the names of what is no tensor, and of
        those the ones that hold tensors in a way of their own."""
        if isinstance(root, (View, Refused)):
            raise InputError(self.path, "--key names a tensor, not a state dict")
        views: dict[str, View | Refused] = {}
        non_tensors: list[str] = []
        hidden: list[str] = []
        length = 0
        # Children in order, one iterator per level; `open_ids` are the nodes we are inside of.
        levels = [("", root, members(root))]
        open_ids = {id(root)}
        while levels:
            prefix, node, rest = levels[-1]
            member = next(rest, None)
            if member is None:
                levels.pop()
                open_ids.discard(id(node))
                continue
            name = prefix + member[0]
            value = member[1]
            length += len(name)
            self.room -= 1
            if self.room < 0 or length > _MAX_NAMES:
                raise InputError(self.path, "its pickle repeats its parts beyond reason")
            if len(name) > _MAX_NAME:
                raise InputError(self.path, f"a name of {len(name):,} characters")
            if isinstance(value, (View, Refused)):
                if skip_never and not prefix and _is_never(name, value):
                    non_tensors.append(name)
                    continue
                if name in views:
                    raise InputError(self.path, f"two tensors are called '{name}'")
                if not name.isprintable() and _is_unwritable(name):
                    raise InputError(self.path, f"a tensor's name is no text: {name[:80]!r}")
                views[name] = value
            elif self._is_inside(name, value, skip_never and not prefix):
                if id(value) in open_ids or len(levels) >= _MAX_NESTING:
                    raise InputError(self.path, f"'{name[:80]}' is nested without end")
                levels.append((name + ".", value, members(value)))
                open_ids.add(id(value))
            else:
                non_tensors.append(name)
                if not (skip_never and not prefix and _is_never(name, value)) and hides(value):
                    hidden.append(name)
        return views, tuple(non_tensors), tuple(hidden)

    def _is_inside(self, name: str, value: Any, skip_never: bool) -> bool:
        if not is_walkable(value) or is_optimizer(value):
            return False
        return not (skip_never and _is_never(name, value)) and self.holds_tensors(value)


def _listing(entries: Mapping[str, Any]) -> str:
    shown = [f"'{name[:60]}'" for name in list(entries)[:_LISTED]]
    return ", ".join(shown) + (", ..." if len(entries) > _LISTED else "")


def _is_unwritable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return True
    return "\0" in name
