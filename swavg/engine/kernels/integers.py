"""Integers and bools, which have no meaningful weighted sum: an explicit rule, exact."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

Element = np.integer | np.bool_
Integers = npt.NDArray[Element]


def combine(
    rule: Literal["last", "first", "max", "mean"],
    arrays: Sequence[Integers],
    weights: Sequence[float],
    uniform: bool,
) -> Integers:
    """One array of the inputs' dtype. ``mean`` is the weighted mean, rounded down.

    The mean is exact for uniform weights. Otherwise float64 differences from the first input are
    weighted (exactly, where 64-bit values are too far apart for that), rounded at the 9th decimal
    so that weights such as 0.1 do not cost a unit, and rounded down. Raises OverflowError if the
    result leaves the dtype (weights that do not sum to 1).
    """
    if rule == "last":
        return arrays[-1]
    if rule == "first":
        return arrays[0]
    if rule == "max":
        return functools.reduce(np.maximum, arrays)
    return _mean(arrays, weights, uniform)


def _mean(arrays: Sequence[Integers], weights: Sequence[float], uniform: bool) -> Integers:
    dtype = arrays[0].dtype
    wide = np.dtype(np.uint64 if dtype == np.uint64 else np.int64)
    values = [array.astype(wide) for array in arrays]
    if uniform:
        n = wide.type(len(values))
        quotients = np.sum([value // n for value in values], axis=0, dtype=wide)
        remainders = np.sum([value % n for value in values], axis=0, dtype=wide)
        return (quotients + remainders // n).astype(dtype)
    near = dtype.itemsize < 8 or all(_below(value, 2**52) for value in values)
    if not near:
        return _exact(values, weights, dtype)
    total = math.fsum(weights)
    base = values[0].astype(np.int64)
    shift = np.zeros(base.shape)
    for value, weight in zip(values[1:], weights[1:], strict=True):
        shift += weight * (value.astype(np.int64) - base).astype(np.float64)
    if abs(total - 1) > 1e-6:
        shift += total * base.astype(np.float64)
        base = np.zeros_like(base)
    result = base + np.floor(np.round(shift, 9)).astype(np.int64)
    _check(int(result.min(initial=0)), int(result.max(initial=0)), dtype)
    return result.astype(dtype)


def _below(value: Integers, bound: int) -> bool:
    return int(value.max(initial=0)) < bound and int(value.min(initial=0)) > -bound


def _exact(
    values: Sequence[Integers], weights: Sequence[float], dtype: np.dtype[Element]
) -> Integers:
    fractions = [Fraction(weight).limit_denominator(10**9) for weight in weights]
    flat = [value.reshape(-1).tolist() for value in values]
    sums = [
        math.floor(sum(f * v for f, v in zip(fractions, column, strict=True)))
        for column in zip(*flat, strict=True)
    ]
    _check(min(sums, default=0), max(sums, default=0), dtype)
    return np.array(sums, dtype=dtype).reshape(values[0].shape)


def _check(low: int, high: int, dtype: np.dtype[Element]) -> None:
    if dtype == np.bool_:
        bounds = (0, 1)
    else:
        info = np.iinfo(dtype.str)
        bounds = (int(info.min), int(info.max))
    if low < bounds[0] or high > bounds[1]:
        raise OverflowError(f"{low if low < bounds[0] else high} does not fit {dtype}")
