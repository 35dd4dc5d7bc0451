"""Which leaves of a tree that JAX programs save are the model's, and which the training's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

Path = tuple[str, ...]

PARAMS = "params"
"""The collection of a Flax model that holds its parameters."""
_STATISTICS = "batch_stats"
_NEVER = re.compile(r"opt_?states?|optim(izers?)?(_?states?|_variables)?|cache|intermediates")
"""Names of what is no model's, whatever it holds."""
_LIKELY = re.compile(
    r"opt|opt_?states?|optim.*|tx|(global_?)?steps?|epoch|iteration|rngs?|prng.*|rng_.*"
    r"|metrics?(_variables)?|schedule.*|lr_.*|dataset.*|data_?iter.*|data_?loader.*|loss_scale"
    r"|ema.*|.*_ema"
)
"""Names of what is the training's, or a module of the model: what it holds tells."""

_RANDOM = "seed_generator_state"
"""What Keras calls the state of a random generator."""

_MOMENTS = (("mu",), ("nu",), ("trace",), ("inner_state",), ("inner_states",))
"""Names in the states of optax, behind the number in a chain."""


def training_leaves(
    paths: Sequence[Path], holds_weights: Callable[[Sequence[int]], bool]
) -> set[int]:
    """The numbers of the leaves beside the model, which are

    - those under the name of an optimizer's state, and those of Keras' random generators;
    - those whose name may be one of training, and all beside ``params`` and ``batch_stats``, where
      they lie under names of the model's parameters (moments, copies), or are no weights.

    ``holds_weights`` tells of the leaves of some numbers whether one is of floats with dimensions.
    """
    roots = {path[: path.index(PARAMS)] for path in paths if PARAMS in path[:2]}
    groups: dict[Path, list[int]] = {}
    model: set[Path] = set()
    for number, path in enumerate(paths):
        group = _group(path, roots)
        if group:
            groups.setdefault(group, []).append(number)
        elif PARAMS in path[:2] or not roots:
            model.add(path[path.index(PARAMS) + 1 :] if roots else path)
    beside = {number for number, path in enumerate(paths) if path[-1:] == (_RANDOM,)}
    for group, numbers in groups.items():
        below = [paths[number][len(group) :] for number in numbers]
        if (
            _NEVER.fullmatch(group[-1])
            or any(_is_state(path, model) for path in below)
            or not holds_weights(numbers)
        ):
            beside.update(numbers)
    return beside


def groups_of(paths: Iterable[Path], others: Iterable[Path]) -> list[str]:
    """The shortest dotted paths below which all ``paths`` lie, and none of the ``others``."""
    shared = {path[:end] for path in others for end in range(len(path))}
    shortest = (
        next((path[:end] for end in range(1, len(path)) if path[:end] not in shared), path)
        for path in paths
    )
    return [".".join(path) for path in dict.fromkeys(shortest)]


def _is_state(path: Path, model: set[Path]) -> bool:
    """Whether a path is that of a moment or a copy: it ends with one of the model's, or begins as
    those in a chain of optax."""
    chained = path[:1] != () and path[0].isdecimal() and path[1:2] in _MOMENTS
    return chained or any(path[at:] in model for at in range(len(path)))


def _group(path: Path, roots: set[Path]) -> Path:
    """The beginning of a path that may be beside the model; empty for what is in it."""
    for end, name in enumerate(path[:2]):
        if name in (PARAMS, _STATISTICS) and path[:end] in roots:
            return ()
        if _LIKELY.fullmatch(name) or _NEVER.fullmatch(name):
            return path[: end + 1]
    if not roots:
        return ()
    return path[:1] if () in roots or path[:1] not in roots else path[:2]
