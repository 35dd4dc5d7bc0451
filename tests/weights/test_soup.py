"""The rule of greedy soups."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swavg import weights
from swavg.errors import RequestError


def closeness(values):
    """A metric of candidates: how near the mean of their values comes to 0."""
    return lambda candidate: -abs(sum(values[i] for i in candidate) / len(candidate))


def greedy(metric_of, order, mode, **more):
    """The ingredients that are kept, one after the other."""
    tried = weights.trials(metric_of, order, mode, **more)
    return tuple(trial.ingredient for trial in tried if trial.kept)


def test_a_candidate_that_makes_the_soup_worse_is_left_out():
    values = [1, -2, 5, -1]
    assert greedy(closeness(values), (0, 3, 1, 2), "max") == (0, 3)


def test_each_candidate_is_those_kept_and_one_more():
    seen = []

    def metric_of(candidate):
        seen.append(candidate)
        return {(4,): 3.0, (4, 1): 2.0, (4, 1, 0): 2.5, (4, 1, 2): 1.0}[candidate]

    assert greedy(metric_of, (4, 1, 0, 2), "min") == (4, 1, 2)
    assert seen == [(4,), (4, 1), (4, 1, 0), (4, 1, 2)]


def test_a_tie_is_kept_by_the_paper_and_left_by_its_code():
    assert greedy(lambda _: 0.5, (2, 0, 1), "max") == (2, 0, 1)
    assert greedy(lambda _: 0.5, (2, 0, 1), "max", accept_equal=False) == (2,)


def test_a_candidate_without_a_metric_is_never_kept():
    metrics = {(0,): math.nan, (1,): 0.2, (1, 2): math.nan, (1, 3): 0.2}
    assert greedy(metrics.__getitem__, (0, 1, 2, 3), "max") == (1, 3)
    assert greedy(lambda _: math.nan, (0, 1), "min") == ()


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.booleans())
def test_the_greedy_soup_equals_its_running_form(values, accept_equal):
    order = sorted(range(len(values)), key=lambda i: abs(values[i]))
    mean, n, expected = values[order[0]], 1, [order[0]]
    for index in order[1:]:
        kept, taken = weights.running(n)
        candidate = kept * mean + taken * values[index]
        if abs(candidate) < abs(mean) or (accept_equal and abs(candidate) == abs(mean)):
            mean, n = candidate, n + 1
            expected.append(index)
    state = {(): 0.0}

    def metric_of(candidate):
        *soup, new = candidate
        if soup:
            kept, taken = weights.running(len(soup))
            state[candidate] = kept * state[tuple(soup)] + taken * values[new]
        else:
            state[candidate] = values[new]
        return -abs(state[candidate])

    assert greedy(metric_of, order, "max", accept_equal=accept_equal) == tuple(expected)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12))
def test_the_soup_is_never_worse_than_its_best_ingredient(values):
    metric_of = closeness(values)
    order = sorted(range(len(values)), key=lambda i: abs(values[i]))
    kept = greedy(metric_of, order, "max")
    assert kept[0] == order[0]
    assert metric_of(kept) >= metric_of((order[0],))


def test_a_repeated_ingredient_and_another_mode_are_refused():
    with pytest.raises(RequestError, match="given twice"):
        greedy(lambda _: 1.0, (0, 0), "min")
    with pytest.raises(RequestError, match="neither min nor max"):
        greedy(lambda _: 1.0, (0,), "best")
