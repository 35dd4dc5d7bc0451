"""Weights that stand for a decaying learning rate, a corrected EMA, and metrics: each against its
running form."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swavg import weights
from swavg.errors import RequestError

VALUES = st.lists(st.floats(-10, 10), min_size=1, max_size=20)


def combined(found, values):
    return math.fsum(weight * value for weight, value in zip(found, values, strict=True))


@given(VALUES, st.sampled_from([*weights.ANNEALINGS]))
def test_annealing_is_the_run_whose_updates_were_scaled(values, name):
    n = len(values)
    curve = {"linear": lambda x: 1 - x, "1-sqrt": lambda x: 1 - x**0.5,
             "cosine": lambda x: 0.5 * (1 + math.cos(math.pi * x))}[name]  # fmt: skip
    factors = weights.annealing_factors(name, n)
    state = values[0]
    for i in range(1, n):
        assert factors[i - 1] == pytest.approx(curve(i / n), abs=1e-12)
        state += factors[i - 1] * (values[i] - values[i - 1])
    found = weights.anneal(factors)
    assert combined(found, values) == pytest.approx(state, rel=1e-9, abs=1e-9)
    assert math.fsum(found) == pytest.approx(1, abs=1e-12)


@given(st.integers(1, 100))
def test_a_linear_annealing_is_the_mean(n):
    assert weights.anneal(weights.annealing_factors("linear", n)) == pytest.approx([1 / n] * n)


def test_factors_of_ones_own():
    assert weights.anneal([1.0, 0.5, 0.25]) == (0.0, 0.5, 0.25, 0.25)
    assert weights.anneal([]) == (1.0,)


@pytest.mark.parametrize("factors", [[0.5, 0.6], [1.1], [0.5, -0.1], [math.nan], [0.5, math.nan]])
def test_factors_that_do_not_fall_are_refused(factors):
    with pytest.raises(RequestError, match="fall from 1 to 0"):
        weights.anneal(factors)


def test_an_unknown_annealing_is_refused_with_those_that_there_are():
    with pytest.raises(RequestError, match="no annealing") as caught:
        weights.annealing_factors("exponential", 3)
    assert "cosine" in caught.value.hint


@given(
    st.lists(st.tuples(st.floats(-10, 10), st.integers(1, 500)), min_size=1, max_size=20),
    st.floats(0, 1), st.floats(0, 1), st.floats(1, 100), st.floats(0, 3),
)  # fmt: skip
def test_bema_is_its_running_form(series, kappa, eta, rho, gamma):
    values = [value for value, _ in series]
    steps = [int(step) for step in np.cumsum([gap for _, gap in series])]
    state = values[0]
    for value, step in zip(values[1:], steps[1:], strict=True):
        beta = (rho + gamma * (step - steps[0])) ** -kappa
        state = (1 - beta) * state + beta * value
    if len(values) > 1:
        alpha = (rho + gamma * (steps[-1] - steps[0])) ** -eta
        state += alpha * (values[-1] - values[0])
    found = weights.bema(steps, kappa=kappa, eta=eta, rho=rho, gamma=gamma)
    assert combined(found, values) == pytest.approx(state, rel=1e-9, abs=1e-9)
    assert math.fsum(found) == pytest.approx(1, abs=1e-9)


def test_bema_refuses_what_has_no_meaning():
    for steps, more in (([3, 3], {}), ([0, 0.2], {"rho": 0.5}), ([0, 1], {"eta": math.nan})):
        with pytest.raises(RequestError):
            weights.bema(steps, **more)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=9), st.floats(0.1, 10), st.booleans())
def test_weights_by_metric_are_a_softmax(metrics, temperature, lower):
    sign = -1 if lower else 1
    raw = [math.exp(sign * metric / temperature) for metric in metrics]
    found = weights.by_metric(metrics, lower_is_better=lower, temperature=temperature)
    assert found == pytest.approx([value / math.fsum(raw) for value in raw], rel=1e-9, abs=1e-300)


def test_weights_by_metric_at_the_ends():
    assert weights.by_metric([1e9, 1e9 + 1], lower_is_better=True, temperature=1e-9) == (1.0, 0.0)
    for metrics, temperature in (([], 1), ([math.nan], 1), ([1.0], 0), ([1.0], math.inf)):
        with pytest.raises(RequestError):
            weights.by_metric(metrics, lower_is_better=True, temperature=temperature)
