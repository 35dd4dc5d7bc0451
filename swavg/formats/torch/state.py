"""Finding the state dict in an unpickled torch checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field

from swavg.errors import InputError, LoneTensorError, NoWeightsError, OptimizerError, quoted
from swavg.formats.torch.arrays import is_array
from swavg.formats.torch.flatten import Flattened, flatten
from swavg.formats.torch.holding import CONTAINERS, holding_tensors
from swavg.formats.torch.objects import (
    HIDDEN,
    Refused,
    View,
    class_name,
    entries,
    is_optimizer,
    mapping,
    module_state,
    name_of,
)
from swavg.formats.torch.siblings import (
    DEPTH,
    Beside,
    Views,
    are_weights,
    beside,
    is_layers,
    places,
)
from swavg.formats.torch.usual_names import (
    CALLBACKS,
    EMA,
    PLAIN,
    also_there,
    is_never,
    is_weight,
    several,
)

_LISTED = 8


@dataclass(frozen=True)
class State:
    """The chosen state dict: ``views`` by dotted name. ``root_key`` is the dotted path to it, empty
    for the top level. ``non_tensors`` are names in it that hold no tensor, ``other_entries`` the
    top-level keys outside it (and the class of a pickled module). ``node`` is its object.

    ``also`` are those of the ``notes`` that say what else could have been meant, ``beside`` what
    other state dicts there are, ``arrays`` the names of NumPy arrays."""

    root_key: str
    node: object
    views: Mapping[str, View | Refused]
    non_tensors: tuple[str, ...]
    other_entries: tuple[str, ...]
    notes: tuple[str, ...]
    also: tuple[str, ...] = ()
    beside: Beside = field(default_factory=Beside)
    arrays: tuple[str, ...] = ()


def find_state(path: str, top: object, max_entries: int, key: str | None = None) -> State:
    """The state dict in ``top``, under ``key`` if one is given (``""`` is the top level itself).

    At most ``max_entries`` entries are visited: the opcodes of the pickle, of which an honest file
    has more. InputError if there is none, or more than one that could be meant.
    """
    search = _Search(path, max_entries)
    also: tuple[str, ...] = ()
    if key is not None:
        root_key, node = key, search.follow(top, key)
        if key and is_optimizer(node):
            raise InputError(path, f"'{key}' is the state of an optimizer, which is not averaged")
    else:
        root_key, node, also = search.locate(top)
    # Below a usual name, and in a module, every tensor belongs to the model.
    skip_never = key is None and not root_key and module_state(node) is None
    views, non_tensors, hidden, arrays = search.flatten(node, skip_never=skip_never)
    notes: tuple[str, ...] = ()
    if hidden:
        shown = quoted((name[:80] for name in hidden), _LISTED)
        notes = (f"tensors inside {shown} are not averaged: swavg does not know its kind",)
    if arrays and not views:
        raise InputError(
            path,
            f"holds NumPy arrays ('{arrays[0][:80]}') and no tensors",
            hint="Save it with tensors in their place: torch.from_numpy.",
        )
    if not views and root_key:
        raise InputError(path, f"no tensors under '{root_key}'")
    if not views:
        raise _no_weights(path, top)
    if root_key:
        names = _names(top)
        first = root_key if root_key in names else root_key.split(".")[0]
        others = tuple(name for name in names if name != first)
    elif node is not top:
        others = tuple(name for name in _names(top) if name not in _names(node))
    else:
        others = tuple(name for name in non_tensors if "." not in name)
    if (kind := class_name(node)) is not None:
        others = (*others, f"class {kind}")
    further = search.beside(top, root_key, node, views.keys()) if key is None else Beside()
    notes = (*also, *notes)
    return State(
        root_key, node, views, non_tensors, others, notes, also, further, (*arrays, *further.arrays)
    )


def _no_weights(path: str, top: object) -> NoWeightsError:
    """The error of a file without a state dict of weights."""
    beside = [(name_of(name), value) for name, value in entries(top)]
    if is_optimizer(top) or any(is_optimizer(value) for _, value in beside):
        return OptimizerError(path, "holds the state of an optimizer, and no weights")
    if path.endswith("_optim_states.pt"):
        return OptimizerError(path, "is of DeepSpeed's optimizer", hint="Give its folder.")
    # Its state may be of any kind.
    if any("optim" in name.lower() and isinstance(value, CONTAINERS) for name, value in beside):
        return OptimizerError(path, "holds no tensors that could be a state dict")
    return NoWeightsError(path, "holds no tensors that could be a state dict")


def _names(top: object) -> list[str]:
    """The names of the entries of ``top``, if it is no list."""
    if isinstance(top, (list, tuple)):
        return []
    return [name_of(name) for name, value in entries(top) if value is not HIDDEN]


class _Search:
    """One walk over one file's object graph, which may hold cycles and shared parts."""

    def __init__(self, path: str, max_entries: int) -> None:
        self.path = path
        self._max_entries = max_entries
        self._holding: Set[int] = frozenset()
        self._arrays_only = False

    def locate(self, top: object) -> tuple[str, object, tuple[str, ...]]:
        """Path and node of the state dict, and notes on what else could have been meant."""
        if isinstance(top, (View, Refused)):
            raise LoneTensorError(self.path, "holds a single tensor, not a state dict")
        self._find_holding(top)
        if isinstance(top, (list, tuple)) or module_state(top) is not None:
            return "", top, ()
        found = mapping(top)
        if found is None:
            raise NoWeightsError(self.path, "holds no state dict")
        candidates = [name for name, node in found.items() if self._may_be_meant(name, node)]
        chosen: object = next((name for name in (*PLAIN, *EMA) if name in candidates), None)
        if chosen in EMA and any(is_weight(*item) and is_layers(item[0]) for item in found.items()):
            # Plain weights win: those of the top level, and the average is among them.
            return "", top, ()
        if chosen is None:
            direct = any(is_weight(name, value) for name, value in found.items()) or (
                self._arrays_only and any(map(is_array, found.values()))
            )
            scalar = any(
                isinstance(value, View) and not is_never(name, value)
                for name, value in found.items()
            )
            if direct or (scalar and not candidates):
                return "", top, ()
            if len(candidates) > 1:
                together = {
                    name: found[name]
                    for name in candidates
                    if are_weights(str(name), self.tensors(found[name])[0])
                }
                if len(together) > 1:
                    return "", together, ()
                raise several(self.path, [str(name) for name in candidates])
            if not candidates:
                raise _no_weights(self.path, top)
            chosen = candidates[0]
        parts, node = self._deeper([str(chosen)], found[chosen])
        root_key = ".".join(parts)
        others = [str(name) for name in candidates if name != chosen]
        return root_key, node, also_there(root_key, others)

    def _find_holding(self, node: object) -> None:
        """What holds tensors; only if nothing does, what holds arrays."""
        self._holding = holding_tensors(self.path, node, self._max_entries)
        self._arrays_only = not self._holding
        if self._arrays_only:
            self._holding = holding_tensors(self.path, node, self._max_entries, arrays=True)

    def _may_be_meant(self, name: object, node: object) -> bool:
        return (
            isinstance(name, str)
            and id(node) in self._holding
            and not is_optimizer(node)
            and not is_never(name, node)
        )

    def tensors(self, node: object) -> tuple[Views, Sequence[str]]:
        """All tensors of a state dict by dotted name, and the names of NumPy arrays in it."""
        found = self.flatten(node, skip_never=False)
        return found.views, found.arrays

    def flatten(self, node: object, *, skip_never: bool) -> Flattened:
        return flatten(self.path, node, self._holding, skip_never=skip_never)

    def beside(self, top: object, root_key: str, chosen: object, names: Collection[str]) -> Beside:
        """What is beside the ``chosen`` state dict, whose tensors have these names."""
        found = mapping(top)
        if found is None or (chosen is top and CALLBACKS not in found):
            return Beside()
        around = places(top, root_key, chosen, self._holding)
        return beside(around, self.tensors, names)

    def _deeper(self, parts: list[str], node: object) -> tuple[list[str], object]:
        """Down through wrappers such as ``model.state_dict``, as long as nothing is left behind
        but optimizer state and moving averages."""
        while len(parts) < DEPTH:
            found = mapping(node)
            if found is None or any(isinstance(v, (View, Refused)) for v in found.values()):
                break
            names = [str(name) for name, value in found.items() if self._may_be_meant(name, value)]
            plain = [name for name in names if name not in EMA] or names
            if len(plain) != 1 or plain[0] not in (*PLAIN, *EMA):
                break
            parts, node = [*parts, plain[0]], found[plain[0]]
        return parts, node

    def follow(self, top: object, key: str) -> object:
        """The node at the dotted path ``key``; keys may hold dots themselves."""
        node, rest = top, key
        while rest:
            found = {name_of(k): v for k, v in entries(node) if v is not HIDDEN}
            ends = [i for i in range(len(rest) + 1) if i == len(rest) or rest[i] == "."]
            end = next((i for i in reversed(ends) if rest[:i] in found), None)
            if end is None:
                raise InputError(
                    self.path,
                    f"has no '{key}'",
                    hint=f"There are: {quoted((n[:60] for n in found), 8)}." if found else None,
                )
            node, rest = found[rest[:end]], rest[end + 1 :]
        self._find_holding(node)
        return node
