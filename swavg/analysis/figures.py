"""Figures of tensors as plain values."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Statistics:
    """Figures of a tensor's finite elements; None where it has none, and where float64 cannot
    hold what they are made of.

    ``std`` is the population's (the mean square is over n). ``min`` and ``max`` of integers and
    bool are exact. Complex elements count by their magnitude.
    """

    mean: float | None
    std: float | None
    min: float | int | None
    max: float | int | None
    nans: int
    infs: int


@dataclass(frozen=True, slots=True)
class Distance:
    """How far B lies from A, in float64.

    ``differing`` counts the elements that are not equal (NaN equals NaN); ``nonfinite`` those of
    them with a NaN or Inf, which the other figures leave out. ``distance`` is ||a - b||,
    ``relative_distance`` that over ||a|| (None if A is zero and B is not), ``largest`` the largest
    |a - b|, ``cosine`` that of the angle between them (None if either is zero). Both are None too
    where squares leave the range of float64.
    """

    name: str
    elements: int
    differing: int
    nonfinite: int
    distance: float
    norms: tuple[float, float]
    relative_distance: float | None
    largest: float
    cosine: float | None


def jsonable(value: object) -> object:
    """Plain values for ``json.dumps``; floats that JSON lacks (NaN, Inf) become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: jsonable(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(each) for each in value]
    return value
