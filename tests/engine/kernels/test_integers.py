"""Rules for integers."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swavg.engine.kernels.integers import combine


def test_first_last_and_max():
    rows = [np.int64([1, 9]), np.int64([5, 2])]
    assert combine("first", rows, (0.5, 0.5), True).tolist() == [1, 9]
    assert combine("last", rows, (0.5, 0.5), True).tolist() == [5, 2]
    assert combine("max", rows, (0.5, 0.5), True).tolist() == [5, 9]


def test_the_mean_floors_as_fairseq_does():
    assert combine("mean", [np.int64([7]), np.int64([2])], (0.5, 0.5), True).tolist() == [4]
    assert combine("mean", [np.int8([-7]), np.int8([2])], (0.5, 0.5), True).tolist() == [-3]


def test_bools_are_true_in_the_mean_where_all_are():
    rows = [np.array([True, True]), np.array([True, False])]
    assert combine("mean", rows, (0.5, 0.5), True).tolist() == [True, False]
    assert combine("max", rows, (0.5, 0.5), True).tolist() == [True, True]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64", "uint64"])
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_the_uniform_mean_is_exact_over_the_whole_range(dtype, data):
    info = np.iinfo(dtype)
    values = data.draw(st.lists(st.integers(int(info.min), int(info.max)), min_size=1, max_size=6))
    rows = [np.array([value], dtype) for value in values]
    found = combine("mean", rows, (1 / len(rows),) * len(rows), True)
    assert found.dtype == np.dtype(dtype)
    assert int(found[0]) == sum(values) // len(values)


@given(st.lists(st.integers(-(2**62), 2**62), min_size=2, max_size=4))
def test_weighted_means_of_huge_integers_do_not_lose_units(values):
    weights = [0.5, *([0.5 / (len(values) - 1)] * (len(values) - 1))]
    rows = [np.int64([value]) for value in values]
    found = combine("mean", rows, weights, False)
    exact = sum(
        Fraction(w).limit_denominator(10**9) * v for w, v in zip(weights, values, strict=True)
    )
    tolerance = 0 if max(map(abs, values)) >= 2**52 else 1
    assert abs(int(found[0]) - exact.__floor__()) <= tolerance


def test_ten_tenths_of_three_are_three():
    rows = [np.int32([3, 3])] * 9 + [np.int32([3, 13])]
    assert combine("mean", rows, (0.1,) * 10, False).tolist() == [3, 4]


def test_a_sum_beyond_the_dtype_is_an_error():
    with pytest.raises(OverflowError, match="does not fit int8"):
        combine("mean", [np.int8([100]), np.int8([101])], (1.0, 1.0), False)
