"""What a torch file says of itself beside its tensors: steps, epochs, metrics, as plain values."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from itertools import islice
from typing import NamedTuple, TypeGuard

from swavg.dtypes import DType
from swavg.errors import InputError
from swavg.formats.torch.objects import Opaque, Storage, View, is_optimizer, module_state
from swavg.formats.torch.views import placed

_MAX_ENTRIES = 500_000
_MAX_VALUES = 20_000
_MAX_NESTING = 5
_MAX_NAME = 200
_MAX_TEXT = 1000


class Element(NamedTuple):
    """The only element of a tensor: its ``dtype``, and the offset of its bytes in the file."""

    dtype: DType
    offset: int


Value = int | float | str | Element


def plain_values(
    path: str, top: object, locate: Callable[[Storage], int], *, state: object = None
) -> dict[str, Value]:
    """The numbers and short texts in ``top`` and in the dictionaries in it, by dotted path.

    Of a list only the last item is kept, under -1: logs grow at their end. Tensors of one element
    are placed, not read, unless they have the dotted name of a parameter. ``state`` (the state
    dict, unless that is ``top``) is left out, as are modules and optimizers; what is outermost
    comes first if there is too much.
    """
    result: dict[str, Value] = {}
    pending = deque([("", _entries(top), 1)])
    values, entries = _MAX_VALUES, _MAX_ENTRIES
    while pending and values > 0:
        prefix, source, nesting = pending.popleft()
        for name, node in islice(source.items(), entries):
            entries -= 1
            if not (type(name) is int or (isinstance(name, str) and len(name) <= _MAX_NAME)):
                continue
            value: Value | None = None
            inner: Mapping[object, object] = {}
            if isinstance(node, View):
                value = _element(path, name, node, locate)
            elif _is_plain(node):
                value = node
            elif nesting < _MAX_NESTING and node is not state:
                inner = _entries(node)
            if (value is not None or inner) and values > 0:
                values -= 1
                if value is not None:
                    result[f"{prefix}{name}"] = value
                else:
                    pending.append((f"{prefix}{name}.", inner, nesting + 1))
    return result


def _is_plain(node: object) -> TypeGuard[int | float | str]:
    if isinstance(node, str):
        return len(node) <= _MAX_TEXT
    return type(node) is float or (type(node) is int and node.bit_length() < 64)


def _entries(node: object) -> Mapping[object, object]:
    if isinstance(node, Opaque) and module_state(node) is None:
        return node.pairs or (node.state if isinstance(node.state, dict) else {})
    if isinstance(node, (list, tuple)):
        return {-1: node[-1]} if node else {}
    return node if isinstance(node, dict) and not is_optimizer(node) else {}


def _element(
    path: str, name: str | int, view: View, locate: Callable[[Storage], int]
) -> Element | None:
    if view.size not in ((), (1,)) or (isinstance(name, str) and "." in name):
        return None
    try:
        (place,) = placed(path, {str(name): view}, locate)
    except InputError:
        return None
    # A complex number is no scalar that anyone sorts or plots by.
    return None if place.dtype.kind == "complex" else Element(place.dtype, place.offset)
