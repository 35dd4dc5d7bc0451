"""Which variables are the model's: by the object graph, or else by their names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from itertools import islice

from swavg.formats.tensorflow.proto import Value, fields, messages

GRAPH_KEY = b"_CHECKPOINTABLE_OBJECT_GRAPH"
GRAPH_LIMIT = 32 << 20
"""Bytes of an object graph at most."""
NODE_LIMIT = 500_000
EDGE_LIMIT = 1_000_000

_OPTIMIZERS = (b"optimizer", b"_optimizer")
_COUNTERS = (b"save_counter", b"step")
"""Children of the root that count, and are no weights."""
_OF_OPTIMIZERS = ({b"_iterations", b"_variables"}, {b"iter", b"learning_rate"}, {b"iter", b"decay"})
"""Children that Keras' optimizers have, of version 3 and before."""

_SLOT = re.compile(
    rb"(.+)(?:/(?:Adam|AdamW|AdaMax|Adamax|Momentum|RMSProp|Adagrad|AdagradDA|Adadelta|Ftrl"
    rb"|AdafactorV?|LAMB|LARS|ExponentialMovingAverage|Nesterov)(?:_\d+)?|/(?:adam|lamb)_[mv]"
    rb"|_slot_(?:v|vr|vc|m))"
)
_COUNTER = re.compile(rb"(?:.+/)?(?:beta[12]_power(?:_\d+)?|global_step)")


def model_keys(graph: bytes) -> frozenset[bytes]:
    """The keys of the variables that can be reached from the root without passing an optimizer.

    Keras 3 names a weight after the first path to it, which mostly leads through the optimizer:
    keys tell nothing. ValueError if the graph is none.
    """
    nodes = list(islice(messages(graph, 1), NODE_LIMIT + 1))
    if len(nodes) > NODE_LIMIT:
        raise ValueError(f"its object graph has more than {NODE_LIMIT:,} nodes")
    found: set[bytes] = set()
    pending, seen, edges = [0] if nodes else [], {0}, 0
    while pending:
        number = pending.pop()
        children, keys, optimizes = _node(nodes[number])
        if number and optimizes:
            continue
        found.update(keys)
        edges += len(children)
        if edges > EDGE_LIMIT:
            raise ValueError(f"its object graph has more than {EDGE_LIMIT:,} edges")
        for name, child in children:
            if name in _OPTIMIZERS or (number == 0 and name in _COUNTERS) or child in seen:
                continue
            if child >= len(nodes):
                raise ValueError("its object graph names a node that is not there")
            seen.add(child)
            pending.append(child)
    return frozenset(found)


def _node(data: bytes) -> tuple[list[tuple[Value, int]], list[bytes], bool]:
    """A node's children by name, the keys of its variables, and whether it is an optimizer."""
    children: list[tuple[Value, int]] = []
    keys: list[bytes] = []
    has_slots = False
    for number, value in fields(data):
        if number == 1 and isinstance(value, bytes):
            child = dict(fields(value))
            to = child.get(1, 0)
            if not isinstance(to, int) or len(children) >= EDGE_LIMIT:
                raise ValueError("its object graph has an edge that is none")
            children.append((child.get(2, b""), to))
        elif number == 2 and isinstance(value, bytes):
            keys += messages(value, 3)
        has_slots |= number == 3
    names = {name for name, _ in children}
    return children, keys, has_slots or any(own <= names for own in _OF_OPTIMIZERS)


def weights_by_name(names: Collection[bytes]) -> Iterator[bytes]:
    """Of variables that have names alone those that are no slot of another one's, and no count of
    an optimizer's."""
    slots = {name for name in names if (found := _SLOT.fullmatch(name)) and found[1] in names}
    for name in names:
        if name not in slots and not (slots and _COUNTER.fullmatch(name)):
            yield name
