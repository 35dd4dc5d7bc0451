"""Values of variables: their dtypes, and as arrays under names, for a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from swavg.errors import MismatchError
from swavg.integrations.keras.framework import keras, ops

Array = np.ndarray[Any, Any]


def name_of(variable: Any) -> str:
    return str(variable.path if isinstance(variable, keras.Variable) else variable.name)


def dtype_of(variable: Any) -> str:
    return str(keras.backend.standardize_dtype(variable.dtype))


def is_number(variable: Any) -> bool:
    """Whether it can be averaged: no integer, and no seed."""
    return dtype_of(variable).startswith(("float", "bfloat", "complex"))


def wide(variable: Any) -> str:
    """The dtype of an average of the variable."""
    dtype = dtype_of(variable)
    return dtype if dtype in ("float32", "float64") or dtype.startswith("complex") else "float32"


def differs(variable: Any, value: Any) -> bool:
    """Whether any element is another; NaN is none."""
    unequal = ops.not_equal(variable, value)
    return bool(ops.any(ops.logical_and(unequal, ops.equal(variable, variable))))


def array_of(variable: Any) -> Array:
    """A copy of the variable's value."""
    return np.array(ops.convert_to_numpy(variable))


def matched(state: Mapping[str, Any], variables: Sequence[Any]) -> list[tuple[bool, Array]]:
    """For each variable whether it was averaged, and its array, from the entries of a state:
    ``averages/3/dense/kernel`` is the average of the fourth variable, ``copies/4/...`` a copy.

    By place, since layers are called otherwise in another process; MismatchError unless shapes and
    last names (``kernel``) agree."""
    keys = sorted((key for key in state if "/" in key), key=lambda key: int(key.split("/")[1]))
    packed = [(key.split("/", 2), np.asarray(state[key])) for key in keys]
    problems = []
    if len(packed) != len(variables):
        problems.append(f"it has {len(packed)} variables, the model {len(variables)}")
    for ((*_, name), array), variable in zip(packed, variables, strict=False):
        own, shape = name_of(variable), tuple(variable.shape)
        if (name.rpartition("/")[2], array.shape) != (own.rpartition("/")[2], shape):
            problems.append(
                f"where it has '{name}' {list(array.shape)}, the model has '{own}' {list(shape)}"
            )
    if problems:
        raise MismatchError(
            f"The state is not of this model: {'; '.join(problems[:3])}.",
            hint="Build the model as it was when the state was saved.",
        )
    return [(kind == "averages", array) for (kind, *_), array in packed]
