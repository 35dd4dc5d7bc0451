"""What a torch pickle turns into: names, stand-ins, storages, strided views; and what is in them.

Nothing of a file is run or looked up. No key of a dictionary hashes as the file chose.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeGuard

from swavg.dtypes import DType

_MAX_KEY_PARTS = 100
_MAX_KEY_BITS = 256
_MAX_PART = 5000
# Integers below this keep their own hash: too few of them collide to cost anything.
_OWN_HASH = 1 << 20
# From the opcode of a text to the end of the call that makes bytes of it, without the text.
_AROUND_TEXT = 64
# No file is as large.
_LIMIT = 1 << 62

Builder = Callable[..., object]


def is_count(value: object) -> TypeGuard[int]:
    """Whether a value may be an offset, or a size of a tensor."""
    return type(value) is int and 0 <= value < _LIMIT


@dataclass(eq=False, slots=True)
class Global:
    """The name of a class or function. ``build`` makes the value of a call; None: a stand-in."""

    module: str
    name: str
    build: Builder | None = None


@dataclass(eq=False, slots=True)
class Opaque:
    """What a call of anything unknown would have made: the called, arguments, state, contents."""

    of: Global | Opaque
    args: object = ()
    state: object = None
    items: list[object] | None = None
    pairs: dict[object, object] | None = None


@dataclass(eq=False, slots=True)
class Storage:
    """A storage by ``key``: ``numel`` elements of ``dtype`` (None: not averaged) of ``itemsize``
    bytes (None: unknown). A view of ``root_numel`` elements starts ``start`` elements in."""

    key: str
    kind: str
    dtype: DType | None
    itemsize: int | None
    numel: int
    root_numel: int
    start: int = 0


@dataclass(eq=False, slots=True)
class View:
    """A strided tensor: ``offset`` and ``stride`` count elements of ``dtype`` in the storage.
    The numbers are the pickle's, not yet checked."""

    storage: Storage
    dtype: DType
    offset: object
    size: object
    stride: object


@dataclass(eq=False, slots=True)
class Refused:
    """A tensor that cannot be averaged; ``what`` reads after "is"."""

    what: str


class PickledBytes(bytes):
    """Bytes that the pickle has at ``at`` (None: nowhere, or not to be told): as they are, or
    ``as_text``, in Latin-1, with a length of four bytes before it."""

    at: int | None = None
    as_text: bool = False

    def find_text(self, data: bytes, end: int) -> None:
        """Find the text, of which a call that ends at ``end`` of the pickle made them."""
        text = self.decode("latin-1").encode()
        head = b"X" + len(text).to_bytes(4, "little")
        start = max(0, end - len(text) - _AROUND_TEXT)
        found = data.rfind(head + text, start, end)
        # From protocol 4 on frames count bytes, whose number must stay.
        if found >= 0 and data[1] < 4:
            self.at, self.as_text = found + len(head), True


class Key:
    """A dictionary's key whose own hash a file could choose: it hashes as text, which has a secret
    seed. ``cost`` is the work of that in bytes of text."""

    __slots__ = ("_hash", "cost", "value")

    def __init__(self, value: object) -> None:
        text = str(_lanes(value))
        self.value = value
        self.cost = len(text)
        self._hash = hash(text)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self.value == other.value


def dict_key(key: object) -> object:
    """``key``, fit for a dictionary: neither slow to hash nor with a hash that a file chose."""
    kind = type(key)
    if kind is float or kind is tuple or (isinstance(key, int) and abs(key) >= _OWN_HASH):
        return Key(key)
    return key


def _lanes(key: object) -> object:
    """Small values that tell keys apart."""
    if isinstance(key, tuple):
        pending: list[tuple[object, ...]] = [key]
        lanes: list[object] = []
        while pending:
            parts = pending.pop()
            if len(lanes) + len(parts) > _MAX_KEY_PARTS:
                raise pickle.UnpicklingError("a dictionary key of more than 100 parts")
            lanes += [len(parts) if isinstance(part, tuple) else _lanes(part) for part in parts]
            pending += [part for part in parts if isinstance(part, tuple)]
        return lanes
    if isinstance(key, int):
        if key.bit_length() > _MAX_KEY_BITS:
            raise pickle.UnpicklingError("a dictionary key that is a number of more than 256 bits")
        return key
    if isinstance(key, float):
        # No NaN equals another.
        return key if key == key else id(key)
    return hash(key)


def name_of(key: object) -> str:
    """A dictionary's key as a name."""
    if isinstance(key, str):
        return key
    if isinstance(key, Key):
        key = key.value
    if isinstance(key, bytes):
        return key.decode("utf-8", "backslashreplace")
    if isinstance(key, tuple):
        return f"({', '.join(name_of(part)[:_MAX_PART] for part in key)})"
    if isinstance(key, Global):
        return f"{key.module}.{key.name}"
    if isinstance(key, int) and key.bit_length() >= 64:
        return "?"
    return str(key) if key is None or isinstance(key, (int, float)) else "?"


def mapping(node: object) -> dict[object, object] | None:
    """The entries of a dictionary, or of a dictionary-like object; None of anything else."""
    if isinstance(node, dict):
        return node
    return node.pairs if isinstance(node, Opaque) and module_state(node) is None else None


HIDDEN = object()
"""What a module holds without it being part of its state dict."""


def entries(node: object) -> Iterable[tuple[object, object]]:
    """The entries of a container: of a list by index, of a pickled module those of its state dict.

    In a module the work of passing something over shows as an entry, ``HIDDEN``.
    """
    if isinstance(node, dict):
        return node.items()
    if isinstance(node, (list, tuple)):
        return enumerate(node)
    state = module_state(node)
    if state is not None:
        return _module_entries(state)
    return (mapping(node) or {}).items()


def _module_entries(state: dict[object, object]) -> Iterator[tuple[object, object]]:
    not_persistent = set()
    for name in _set_items(state.get("_non_persistent_buffers_set")):
        yield name, HIDDEN
        if isinstance(name, str):
            not_persistent.add(name)
    for part in ("_parameters", "_buffers", "_modules"):
        for name, value in (mapping(state.get(part)) or {}).items():
            hidden = value is None or (part == "_buffers" and name in not_persistent)
            yield name, HIDDEN if hidden else value


def _set_items(node: object) -> Iterator[object]:
    """The items of a pickled set."""
    if isinstance(node, Opaque):
        yield from node.items or ()
        first = node.args[0] if isinstance(node.args, tuple) and node.args else ()
        yield from first if isinstance(first, (list, tuple)) else ()


def module_state(node: object) -> dict[object, object] | None:
    """The attributes of a pickled torch.nn.Module; None of anything else."""
    state = node.state if isinstance(node, Opaque) else None
    if isinstance(state, tuple) and len(state) == 2:
        state = state[0]
    if isinstance(state, dict) and "_parameters" in state and "_modules" in state:
        return state
    return None


def class_name(node: object) -> str | None:
    """The class of a pickled module."""
    if not isinstance(node, Opaque) or module_state(node) is None:
        return None
    return f"{node.of.module}.{node.of.name}" if isinstance(node.of, Global) else "of a module"


def is_optimizer(node: object) -> bool:
    """Whether ``node`` is the state dict of an optimizer, whatever its name."""
    found = mapping(node)
    return found is not None and "param_groups" in found and "state" in found
