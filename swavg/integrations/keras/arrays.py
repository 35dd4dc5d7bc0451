"""Averages as arrays under names, for a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from swavg.errors import MismatchError
from swavg.integrations.keras.framework import keras, ops

Array = np.ndarray[Any, Any]


def name_of(variable: Any) -> str:
    return str(variable.path if isinstance(variable, keras.Variable) else variable.name)


def array_of(variable: Any) -> Array:
    """A copy of the variable's value."""
    return np.array(ops.convert_to_numpy(variable))


def pack(averages: Iterable[tuple[Any, Any, bool]]) -> dict[str, Array]:
    """The arrays of variables, their averages, and whether they are averaged or copied:
    ``averages/3/dense/kernel`` is that of the fourth variable."""
    return {
        f"{'averages' if moved else 'copies'}/{i}/{name_of(variable)}": array_of(average)
        for i, (variable, average, moved) in enumerate(averages)
    }


def matched(state: Mapping[str, Any], variables: Sequence[Any]) -> list[tuple[bool, Array]]:
    """For each variable whether it was averaged, and its array, from what :func:`pack` returned.
    By place, since layers are called otherwise in another process; MismatchError unless shapes and
    last names (``kernel``) agree."""
    packed: dict[int, tuple[str, str, Array]] = {}
    for key in state:
        if "/" in key:
            kind, place, name = key.split("/", 2)
            packed[int(place)] = kind, name, np.asarray(state[key])
    problems = []
    if len(packed) != len(variables):
        problems.append(f"it has {len(packed)} variables, the model {len(variables)}")
    for i, variable in enumerate(variables):
        _, name, array = packed.get(i, ("", name_of(variable), np.empty(variable.shape)))
        if (_last(name), array.shape) != (_last(name_of(variable)), tuple(variable.shape)):
            problems.append(
                f"where it has '{name}' {list(array.shape)}, the model has"
                f" '{name_of(variable)}' {list(variable.shape)}"
            )
    if problems:
        raise MismatchError(
            f"The state is not of this model: {'; '.join(problems[:3])}.",
            hint="Build the model as it was when the state was saved.",
        )
    return [(packed[i][0] == "averages", packed[i][2]) for i in range(len(variables))]


def _last(name: str) -> str:
    return name.rpartition("/")[2]
