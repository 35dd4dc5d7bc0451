"""The numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swavg import weights
from swavg.errors import RequestError

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.integers(1, 1000))
def test_the_mean_gives_each_checkpoint_one_nth(n):
    assert weights.mean(n) == (1 / n,) * n
    assert weights.is_uniform(weights.mean(n))


def test_the_mean_of_nothing_is_refused():
    with pytest.raises(RequestError, match="nothing to average"):
        weights.mean(0)


@given(st.lists(FINITE, min_size=1, max_size=9))
def test_raw_weights_are_used_as_they_are(values):
    assert weights.checked(values, len(values), "raw") == tuple(values)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=9).filter(lambda v: sum(v) > 1e-3))
def test_normalized_weights_sum_to_one_and_keep_their_ratios(values):
    found = weights.checked(values, len(values), "normalize")
    assert math.isclose(math.fsum(found), 1, abs_tol=1e-12)
    for one, other in zip(found, values, strict=True):
        assert math.isclose(one * math.fsum(values), other, rel_tol=1e-12, abs_tol=1e-300)


def test_weight_zero_and_negative_weights_are_weights():
    assert weights.checked([0, 1], 2) == (0.0, 1.0)
    assert weights.checked([-0.5, 1.5], 2) == (-0.5, 1.5)


def test_a_wrong_count_names_both_counts():
    with pytest.raises(RequestError, match=r"3 weights for 2 checkpoints\."):
        weights.checked([0.2, 0.3, 0.5], 2)
    with pytest.raises(RequestError, match=r"1 weight for 2 checkpoints\."):
        weights.checked([1], 2)


def test_a_sum_other_than_one_offers_both_ways_out():
    with pytest.raises(RequestError, match=r"sum to 0\.9, not 1.*sum_to='normalize'.*sum_to='raw'"):
        weights.checked([0.4, 0.5], 2)


def test_thirds_typed_with_seven_digits_count_as_one():
    found = weights.checked([0.3333333] * 3, 3)
    assert found == weights.mean(3)
    assert weights.is_uniform(found)


def test_raw_weights_are_used_as_they_are_also_if_they_are_nearly_the_mean():
    found = weights.checked([0.3333333] * 3, 3, "raw")
    assert found == (0.3333333,) * 3
    assert not weights.is_uniform(found)


@given(n=st.integers(1, 3000))
def test_the_mean_is_uniform_however_it_is_written(n):
    assert weights.is_uniform(weights.mean(n))
    assert weights.is_uniform(weights.checked([7.3] * n, n, "normalize"))


def test_what_is_no_weight_and_no_way_to_sum_is_refused():
    with pytest.raises(RequestError, match="The weights are no numbers"):
        weights.checked(["a", "b"], 2)
    with pytest.raises(RequestError, match="sum_to is 'nonsense'"):
        weights.checked([1], 1, "nonsense")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    with pytest.raises(RequestError, match="not a finite number"):
        weights.checked([bad, 1.0], 2, "raw")


def test_weights_that_sum_to_zero_cannot_be_normalized():
    with pytest.raises(RequestError, match="sum to 0"):
        weights.checked([1, -1], 2, "normalize")
    with pytest.raises(RequestError) as told:
        weights.checked([1, -1], 2)
    assert told.value.hint == "Use sum_to='raw' to use them as they are."


def test_unequal_weights_and_equal_ones_of_another_sum_are_not_the_mean():
    assert not weights.is_uniform((0.4, 0.6))
    assert not weights.is_uniform((1.0, 1.0))


def test_renormalized_weights_keep_the_sum_of_all():
    assert weights.renormalized((0.5, 0.3, 0.2), (0, 2)) == pytest.approx((0.5 / 0.7, 0.2 / 0.7))
    with pytest.raises(RequestError, match="cannot renormalize"):
        weights.renormalized((0.0, 1.0), (0,))


@given(st.integers(1, 500))
def test_the_mean_counts_every_checkpoint(n):
    assert math.isclose(weights.effective_number(weights.mean(n)), n, rel_tol=1e-12)
    assert math.isclose(weights.half_life_of(weights.mean(n)), n / 2, rel_tol=1e-12)


@given(st.floats(0, 0.98))
def test_a_long_ema_has_the_effective_number_and_half_life_of_its_decay(decay):
    found = weights.ema(2000, decay)
    assert math.isclose(weights.effective_number(found), (1 + decay) / (1 - decay), rel_tol=1e-9)
    if decay >= 0.5:
        # Within one checkpoint its weight counts as spread evenly: never further off than this.
        assert abs(weights.half_life_of(found) - weights.half_life(decay)) < 0.1


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=20), st.floats(0.1, 100))
def test_a_common_factor_changes_neither_fact(values, factor):
    scaled = [factor * value for value in values]
    one, other = weights.effective_number(values), weights.effective_number(scaled)
    assert math.isclose(one, other, rel_tol=1e-9)
    assert math.isclose(weights.half_life_of(values), weights.half_life_of(scaled), rel_tol=1e-9)


def test_the_facts_of_a_few_weights_by_hand():
    assert weights.effective_number((0.0, 1.0)) == 1
    assert weights.effective_number((-1.0, 2.0)) == 0.2
    assert weights.half_life_of((0.0, 1.0)) == 0.5
    assert weights.half_life_of((1.0, 0.0)) == 1.5
    assert weights.half_life_of((0.25, 0.5, 0.25)) == 1.5
    assert weights.half_life_of((-1.0, 2.0)) == 0.25


def test_weights_that_sum_to_zero_have_no_shares():
    for fact in (weights.effective_number, weights.half_life_of):
        with pytest.raises(RequestError, match="sum to 0"):
            fact((1.0, -1.0))
