"""Which variables are the model's: by the object graph, or else by their names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice

from swavg.formats.tensorflow.proto import Value, fields, messages
from swavg.formats.tensors import Shape

GRAPH_KEY = b"_CHECKPOINTABLE_OBJECT_GRAPH"
GRAPH_LIMIT = 32 << 20
"""Bytes of an object graph at most."""
Edges = list[tuple[Value, int]]
"""Names and numbers of a node's children."""
NODE_LIMIT = 500_000
EDGE_LIMIT = 1_000_000

_OPTIMIZERS = (b"optimizer", b"_optimizer")
_TRAINED = b"_trainable_variables"
"""The child of Keras' optimizers (of version 3) that holds the weights they train."""
_ALL = b"_variables"
"""A child of theirs that lists what their other children have, and moments."""
_COUNTERS = (b"save_counter", b"step")
"""Children of the root that count, and are no weights."""
_OF_OPTIMIZERS: set[Value] = {b"_iterations", _ALL}
"""Children that Keras' optimizers have."""
_OF_OLD_OPTIMIZERS: tuple[set[Value], ...] = ({b"iter", b"learning_rate"}, {b"iter", b"decay"})
"""Those before version 3, which have no children with children."""

_SLOT = re.compile(
    rb"(.+)(?:/(?:Adam|AdamW|AdaMax|Adamax|Momentum|RMSProp|Adagrad|AdagradDA|ProximalAdagrad"
    rb"|Adadelta|Ftrl|AdafactorV?|LAMB|LARS|ExponentialMovingAverage|Nesterov)(?:_\d+)?|/(?:adam|lamb)_[mv]"
    rb"|_slot_(?:v|vr|vc|m))"
)
_SECOND = re.compile(rb"((.+)/[^/]+)_1")
"""The second slot of an optimizer of any name."""
_COUNTER = re.compile(
    rb"(?:.+/)?(?:beta[12]_power(?:_\d+)?|global_step|current_loss_scale|good_steps)"
)


def model_keys(graph: bytes) -> frozenset[bytes]:
    """The keys of the variables that can be reached from the root without passing an optimizer, and
    of those that an optimizer trains.

    Keras 3 names a weight after the first path to it, which mostly leads through the optimizer:
    keys tell nothing. Of layers in lists and dicts that is the only path. ValueError if the graph
    is none.
    """
    nodes = list(islice(messages(graph, 1), NODE_LIMIT + 1))
    if len(nodes) > NODE_LIMIT:
        raise ValueError(f"its object graph has more than {NODE_LIMIT:,} nodes")
    found: set[bytes] = set()
    # A node, and whether it is part of an optimizer.
    pending, edges = [(0, False)] if nodes else [], 0
    seen = set(pending)
    while pending:
        number, beside = pending.pop()
        children, keys, has_slots = _node(nodes[number])
        edges += len(children)
        if edges > EDGE_LIMIT:
            raise ValueError(f"its object graph has more than {EDGE_LIMIT:,} edges")
        if any(child >= len(nodes) for _, child in children):
            raise ValueError("its object graph names a node that is not there")
        old = number > 0 and not any(_has_children(nodes[child]) for _, child in children)
        beside = beside or has_slots or _is_optimizer({name for name, _ in children}, old=old)
        if not beside:
            found.update(keys)
        for reached in _reached(children, beside=beside, root=number == 0):
            # Variables of an optimizer lead nowhere.
            leads = not reached[1] or _has_children(nodes[reached[0]])
            if leads and reached not in seen:
                seen.add(reached)
                pending.append(reached)
    return frozenset(found)


def _reached(children: Edges, *, beside: bool, root: bool) -> Iterator[tuple[int, bool]]:
    """The children that may lead to weights, each with whether it is part of an optimizer;
    ``beside``: they are those of a part of one."""
    for name, child in children:
        if beside and name != _ALL:
            yield child, name != _TRAINED
        elif not beside and not (root and name in _COUNTERS):
            yield child, name in _OPTIMIZERS


def _has_children(data: bytes) -> bool:
    """Whether a node has children: they come first."""
    return data.startswith(b"\x0a")


def _is_optimizer(names: set[Value], *, old: bool) -> bool:
    """Whether a node with children of these ``names`` is an optimizer; ``old``: it may be one of
    before version 3."""
    return names >= _OF_OPTIMIZERS or (old and any(names >= own for own in _OF_OLD_OPTIMIZERS))


def _node(data: bytes) -> tuple[Edges, list[bytes], bool]:
    """A node's children, the keys of its variables, and whether it lists slots of variables."""
    children: Edges = []
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
    return children, keys, has_slots


def weights_by_name(shapes: Mapping[bytes, Shape]) -> Iterator[bytes]:
    """Of variables that have names (and shapes) alone those that are no slot of another one's, and
    no count of an optimizer's."""
    slots = {name for name in shapes if (found := _SLOT.fullmatch(name)) and found[1] in shapes}
    for name, shape in shapes.items():
        if (pair := _SECOND.fullmatch(name)) and all(
            shapes.get(own) == shape for own in pair.groups()
        ):
            slots |= {name, pair[1]}
    for name in shapes:
        if name not in slots and not (slots and _COUNTER.fullmatch(name)):
            yield name
