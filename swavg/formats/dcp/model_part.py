"""Which of what a distributed checkpoint holds is the model, and where it lies among the rest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from swavg.errors import InputError, OptimizerError, quoted
from swavg.formats.dcp.saved import Saved
from swavg.formats.torch.siblings import are_called_weights
from swavg.formats.torch.usual_names import EMA, PLAIN, also_there, is_never, several

_DEPTH = 4

# What trainers keep beside the model, by the beginning of a full name.
_BESIDE = re.compile(
    r"(chained_\d+\.)?"
    r"((?P<optimizer>optim(s|i[sz]ers?)?((_states?(_dicts?)?|_\d+)*|_\w+[./](state|param_groups)))"
    r"|lr_schedulers?(_\d+)?|data_?loaders?|train_state|rng(_\w+)?)"
    r"([./].*)?",
    re.DOTALL,
)
_OF_OPTIMIZER = ("state", "param_groups")
_DEEPEST = 8
"""Keys that lead to an optimizer, and the next one: a file may have any number."""
_FLOATS = ("float", "bfloat", "complex")
EXTRA_STATE = "_extra_state"
"""What Megatron's layers keep besides weights (scales of fp8, say)."""


@dataclass(frozen=True)
class ModelPart:
    """The model's tensors: full names by those without the keys ``root`` that lead to it.
    ``others`` name what lies beside it, ``objects`` what is in it and no tensor. ``further`` are
    the paths of what may be other models."""

    root: tuple[str, ...]
    names: Mapping[str, str]
    others: tuple[str, ...]
    objects: tuple[str, ...]
    further: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What else could have been meant."""
        return also_there(self.root_key, self.further)

    @property
    def root_key(self) -> str:
        return ".".join(self.root)


def find_model(path: str, saved: Saved, key: str | None = None) -> ModelPart:
    """The tensors under the dotted path ``key``, or of the state dict that is the model's going by
    the names. InputError if there is none, or several could be meant."""
    paths = {name: tuple(map(str, saved.path(name))) for name in (*saved.tensors, *saved.objects)}
    root = () if key is None else _keyed(path, paths, key)
    optimizers = _optimizers(paths.values())
    if key is not None:
        optimizers = {above for above in optimizers if root[: len(above)] != above}
    moments = {name for name, keys in paths.items() if _is_below(optimizers, keys)}
    further: tuple[str, ...] = ()
    if key is None:
        inside = {
            name: paths[name]
            for name in saved.tensors
            if name not in moments and not _is_beside(saved, name, paths[name])
        }
        root, further = _root(path, saved, inside)
    names: dict[str, str] = {}
    objects, others = [], []
    for name, keys in paths.items():
        local = ".".join(keys[len(root) :])
        # Below a name that was asked for, or is a model's, all tensors belong to it.
        if (
            keys[: len(root)] != root
            or len(keys) == len(root)
            or name in moments
            or (not root and _is_beside(saved, name, keys))
        ):
            others.append(_group(keys, root))
        elif name in saved.objects or EXTRA_STATE in keys[-1]:
            objects.append(local)
        elif local in names:
            raise InputError(path, f"two tensors are called '{local[:80]}'")
        else:
            names[local] = name
    if not names:
        raise OptimizerError(path, "holds no tensors of a model")
    return ModelPart(root, names, tuple(dict.fromkeys(others)), tuple(objects), further)


def _group(keys: tuple[str, ...], root: tuple[str, ...]) -> str:
    """The dictionary in which something beside the model lies, as a dotted path."""
    depth = 0
    while depth < min(len(keys) - 1, len(root)) and keys[depth] == root[depth]:
        depth += 1
    # Names that are not nested have dots of their own.
    last = keys[depth] if len(keys) > depth + 1 else keys[depth].split(".")[0]
    return ".".join((*keys[:depth], last))


def _is_beside(saved: Saved, name: str, keys: tuple[str, ...]) -> bool:
    """Whether a name is that of training state. Floats with dimensions are an optimizer's, or
    weights of a module that is called so."""
    if (matched := _BESIDE.fullmatch(name)) is not None and matched["optimizer"]:
        return True
    never = len(keys) > 1 and is_never(keys[0], None)
    if (matched is None and not never) or (never and "optim" in keys[0].lower()):
        return never
    return not _may_be_weight(saved, name)


def _may_be_weight(saved: Saved, name: str) -> bool:
    tensor = saved.tensors.get(name)
    return tensor is not None and bool(tensor.shape) and tensor.dtype.startswith(_FLOATS)


def _optimizers(paths: Iterable[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """The keys that lead to the states of optimizers, whatever they are called: dictionaries of
    ``state`` and ``param_groups``."""
    above: dict[str, set[tuple[str, ...]]] = {name: set() for name in _OF_OPTIMIZER}
    for keys in paths:
        for depth, name in enumerate(keys[:_DEEPEST]):
            if (first := name.partition(".")[0]) in above:
                above[first].add(keys[:depth])
    return set.intersection(*above.values())


def _is_below(optimizers: set[tuple[str, ...]], keys: tuple[str, ...]) -> bool:
    """Whether keys lead into the state of an optimizer."""
    if not optimizers:
        return False
    own = () in optimizers and keys[0].partition(".")[0] in _OF_OPTIMIZER
    return own or any(keys[:depth] in optimizers for depth in range(1, len(keys[:_DEEPEST])))


def _is_named_beside(group: str) -> bool:
    return _BESIDE.fullmatch(group) is not None or is_never(group, None)


def _root(
    path: str, saved: Saved, inside: Mapping[str, tuple[str, ...]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys that lead to the model, and the paths of what else could have been meant."""
    root: tuple[str, ...] = ()
    further: list[str] = []
    while len(root) < _DEPTH:
        depth = len(root)
        inside = {name: keys for name, keys in inside.items() if keys[:depth] == root}
        below = {name: keys[depth] for name, keys in inside.items() if len(keys) > depth + 1}
        groups = [
            group
            for group in dict.fromkeys(below.values())
            if depth == 0 or not is_never(group, None)
        ]
        all_groups = groups
        weights: dict[str, list[str]] = {}
        for name, group in below.items():
            if _may_be_weight(saved, name):
                weights.setdefault(group, []).append(".".join(inside[name][depth + 1 :]))
        groups = [group for group in groups if group in weights] or groups
        usual = [name for name in (*PLAIN, *EMA) if name in groups]
        loose = inside.keys() - below.keys()
        # At the top a step lies beside the model, and a loss.
        if loose and (depth or not groups):
            break
        if not {*usual}.intersection(PLAIN) and any(_may_be_weight(saved, n) for n in loose):
            break
        # Several models of one run, as actor and critic.
        are_several = not (depth or usual) and len(groups) > 1
        if are_several and all(are_called_weights(n, weights.get(n, [])) for n in groups):
            break
        plain = [name for name in groups if name not in EMA] or groups
        likely = [group for group in groups if not _is_named_beside(group)] or groups
        if usual and (depth == 0 or len(plain) == 1):
            chosen = usual[0]
        elif depth == 0 and len(likely) == 1:
            chosen = likely[0]
        elif depth == 0 and groups:
            raise several(path, groups)
        else:
            break
        further += [".".join((*root, name)) for name in all_groups if name != chosen]
        root = (*root, chosen)
    return root, tuple(further)


def _keyed(path: str, paths: Mapping[str, tuple[str, ...]], key: str) -> tuple[str, ...]:
    """The keys whose dotted path is ``key``."""
    if not key:
        return ()
    for keys in paths.values():
        for depth in range(1, len(keys)):
            if ".".join(keys[:depth]) == key:
                return keys[:depth]
    listed = quoted(dict.fromkeys(keys[0][:60] for keys in paths.values()), 8)
    raise InputError(path, f"has no '{key}'", hint=f"There are: {listed}.")
