"""Which variables are the model's: by the object graph, or else by their names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from swavg.formats.tensorflow.proto import fields, messages

GRAPH_KEY = b"_CHECKPOINTABLE_OBJECT_GRAPH"
GRAPH_LIMIT = 32 << 20
"""Bytes of an object graph at most."""

_OPTIMIZERS = ("optimizer", "_optimizer")
_COUNTERS = ("save_counter", "step")
"""Children of the root that count, and are no weights."""
_OF_OPTIMIZERS = ({"_iterations", "_variables"}, {"iter", "learning_rate"}, {"iter", "decay"})
"""Children that Keras' optimizers have, of version 3 and before."""

_SLOT = re.compile(
    rb"(.+)(?:/(?:Adam|AdamW|AdaMax|Adamax|Momentum|RMSProp|Adagrad|AdagradDA|Adadelta|Ftrl"
    rb"|AdafactorV?|LAMB|LARS|ExponentialMovingAverage|Nesterov)(?:_\d+)?|/(?:adam|lamb)_[mv]"
    rb"|_slot_(?:v|vr|vc|m))"
)
_COUNTER = re.compile(rb"(?:.+/)?(?:beta[12]_power(?:_\d+)?|global_step)")


@dataclass(slots=True)
class _Node:
    children: list[tuple[int, bytes]] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    has_slots: bool = False

    @property
    def optimizes(self) -> bool:
        names = {name.decode(errors="replace") for _, name in self.children}
        return self.has_slots or any(own <= names for own in _OF_OPTIMIZERS)


def model_keys(graph: bytes) -> frozenset[bytes]:
    """The keys of the variables that can be reached from the root without passing an optimizer.

    Keras 3 names a weight after the first path to it, which mostly leads through the optimizer:
    keys tell nothing. ValueError if the graph is none.
    """
    nodes = [_node(data) for data in messages(graph, 1)]
    found: set[bytes] = set()
    seen: set[int] = set()
    pending = [0] if nodes else []
    while pending:
        number = pending.pop()
        if number in seen:
            continue
        if number >= len(nodes):
            raise ValueError("its object graph names a node that is not there")
        seen.add(number)
        node = nodes[number]
        found.update(node.keys)
        for child, name in node.children:
            text = name.decode(errors="replace")
            if text in _OPTIMIZERS or (number == 0 and text in _COUNTERS):
                continue
            if child < len(nodes) and nodes[child].optimizes:
                continue
            pending.append(child)
    return frozenset(found)


def _node(data: bytes) -> _Node:
    node = _Node()
    for number, value in fields(data):
        if not isinstance(value, bytes):
            continue
        if number == 1:
            child = dict(fields(value))
            to, name = child.get(1, 0), child.get(2, b"")
            if isinstance(to, int) and isinstance(name, bytes):
                node.children.append((to, name))
        elif number == 2:
            node.keys += messages(value, 3)
        elif number == 3:
            node.has_slots = True
    return node


def weights_by_name(names: Collection[bytes]) -> Iterator[bytes]:
    """Of variables that have names alone those that are no slot of another one's, and no count of
    an optimizer's."""
    slots = {name for name in names if (found := _SLOT.fullmatch(name)) and found[1] in names}
    for name in names:
        if name not in slots and not (slots and _COUNTER.fullmatch(name)):
            yield name
