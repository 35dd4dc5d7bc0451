"""The state dicts of a torch file beside the one that was found: averages of it, other networks."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

from swavg.errors import InputError
from swavg.formats.torch.objects import (
    HIDDEN,
    Refused,
    View,
    entries,
    is_optimizer,
    module_state,
    name_of,
)
from swavg.formats.torch.usual_names import CALLBACKS, EMA, PLAIN, is_never

Views = Mapping[str, View | Refused]

# Deeper than this nobody keeps a state dict; and nobody keeps more.
DEPTH = 3
_MAX_PLACES = 100
_MAX_TENSORS = 500_000

# Words in the names of entries that hold weights; and in those that hold what is made of them.
_WEIGHTS = {
    "model", "models", "module", "net", "nets", "network", "networks", "ema", "swa", "avg",
    "average", "averaged", "averaging", "shadow", "params", "parameters", "weights", "generator",
    "discriminator", "gen", "disc", "dis", "g", "d", "actor", "critic", "policy", "encoder",
    "decoder", "teacher", "student", "backbone", "head", "unet", "vae", "target", "online", "best",
}  # fmt: skip
_TRAINING = {
    "optim", "optimizer", "optimiser", "opt", "adam", "sgd", "exp", "momentum", "velocity", "grad",
    "grads", "gradient", "gradients", "fisher", "loss", "losses", "metric", "metrics", "meter",
    "meters", "stat", "stats", "statistics", "history", "log", "logs", "data", "dataset",
    "datasets", "loader", "dataloader", "sampler", "iterator", "replay", "memory", "queue",
    "cache", "rng", "seed", "scheduler", "sched", "scaler", "counter", "counters",
}  # fmt: skip
_LAYER = frozenset(("weight", "bias", "running_mean", "running_var"))
_OF_OPTIMIZER = frozenset(
    ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "acc_delta")
)
_words = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])").findall
_MAX_PATTERN = 256


@dataclass(frozen=True, slots=True)
class Beside:
    """State dicts beside the chosen one: ``siblings`` by their dotted paths, ``doubtful`` the
    paths of what may be one, ``arrays`` the names of NumPy arrays in them."""

    siblings: Mapping[str, Views] = field(default_factory=dict)
    doubtful: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()


def beside(
    around: Iterable[tuple[str, object]],
    tensors: Callable[[object], tuple[Views, Sequence[str]]],
    names: Collection[str],
) -> Beside:
    """Which of the nodes ``around`` a state dict, whose tensors have these ``names``, are others;
    ``tensors`` gives those of a node, and the names of arrays in it."""
    siblings: dict[str, Views] = {}
    doubtful = []
    arrays: list[str] = []
    room = _MAX_TENSORS
    for path, node in around:
        try:
            views, no_tensors = tensors(node)
        except InputError:
            # What cannot be read does no harm here.
            room -= _MAX_TENSORS // 10
            doubtful.append(path)
            continue
        room -= len(views)
        if room < 0:
            break
        are = are_weights(path, views, names)
        if are:
            siblings[path] = views
            arrays += (f"{path}.{name}" for name in no_tensors)
        elif are is None:
            doubtful.append(path)
    return Beside(siblings, tuple(doubtful), tuple(arrays))


def places(
    top: object, root_key: str, chosen: object, holding: Set[int]
) -> Iterator[tuple[str, object]]:
    """Dotted paths and nodes of what may be a state dict in ``top`` outside the ``chosen`` one,
    which is at ``root_key``, or some entries of the top level (``root_key`` is empty).

    ``holding`` are the ids of what holds tensors.
    """
    inside_chosen = set() if root_key else {name_of(key) for key, _ in entries(chosen)}
    pending = [("", top, 1)]
    seen = {id(top)}
    count = 0
    while pending and count < _MAX_PLACES:
        prefix, container, depth = pending.pop(0)
        for key, node in entries(container):
            name = name_of(key)
            path = prefix + name
            callbacks = not prefix and name == CALLBACKS
            if (
                node is HIDDEN
                or path == root_key
                or id(node) not in holding
                or is_optimizer(node)
                or (is_never(name, node) and not callbacks)
                or (not prefix and not callbacks and name in inside_chosen)
            ):
                continue
            inside = root_key.startswith(path + ".")
            if not inside and not callbacks and (depth == DEPTH or _is_whole(node)):
                count += 1
                yield path, node
            elif depth < DEPTH and id(node) not in seen:
                seen.add(id(node))
                pending.append((path + ".", node, depth + 1))


def _is_whole(node: object) -> bool:
    """Whether a container has tensors of its own, not only in what it holds."""
    return module_state(node) is not None or any(
        isinstance(value, Refused) or (isinstance(value, View) and value.size != ())
        for _, value in entries(node)
    )


def is_layers(name: object) -> bool:
    """Whether a tensor is called as those of layers are."""
    return isinstance(name, str) and name.rpartition(".")[2] in _LAYER


def are_weights(path: str, views: Views, others: Collection[str] = ()) -> bool | None:
    """Whether the tensors at a path are weights of a model; None if that cannot be told.

    ``others`` are the names of tensors that are. Numbers, integers alone and the state of an
    optimizer are none.
    """
    floats = [
        name
        for name, view in views.items()
        if isinstance(view, Refused) or (view.dtype.floating and view.size not in ((), (1,)))
    ]
    return are_called_weights(path, floats, others)


def are_called_weights(
    path: str, floats: Sequence[str], others: Collection[str] = ()
) -> bool | None:
    """:func:`are_weights`, going by the names of the tensors of ``floats``."""
    words = {word.lower() for word in _words(path[-_MAX_PATTERN:])}
    parts = [name.split(".") for name in floats]
    if not floats or any(
        part in _OF_OPTIMIZER for split in parts for part in (split[0], split[-1])
    ):
        return False
    if words & _TRAINING:
        return None
    if words & _WEIGHTS or not {*path.split("."), path}.isdisjoint((*PLAIN, *EMA)):
        return True
    layers = sum(map(is_layers, floats))
    shared = sum(name in others or name.removeprefix("module.") in others for name in floats)
    return True if 2 * max(layers, shared) >= len(floats) else None
