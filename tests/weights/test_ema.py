"""EMA schedules by hand, by their formulas, and against torch and pandas."""

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from swavg import weights
from swavg.errors import RequestError

DECAYS = st.one_of(st.just(0.0), st.floats(1e-6, 0.999999))
VALUES = st.floats(-10, 10)
LONG = st.lists(st.tuples(VALUES, DECAYS, st.integers(1, 500)), min_size=1, max_size=30)


def test_every_public_name_can_be_had_and_no_module_takes_its_place():
    for name in weights.__all__:
        assert not inspect.ismodule(getattr(weights, name)), name


def combined(found, values):
    return math.fsum(weight * value for weight, value in zip(found, values, strict=True))


def close(one, other):
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)


def all_close(found, expected):
    return found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(st.integers(1, 60), DECAYS)
def test_the_ema_has_the_weights_of_the_formula(n, decay):
    first = decay ** (n - 1)
    later = [(1 - decay) * decay ** (n - i) for i in range(2, n + 1)]
    assert all_close(weights.ema(n, decay), (first, *later))
    every = [(1 - decay) * decay ** (n - i) / (1 - decay**n) for i in range(1, n + 1)]
    assert weights.ema(n, decay, debias=True) == pytest.approx(every, rel=1e-8, abs=1e-12)


def test_the_ema_of_three_by_hand():
    assert weights.ema(3, 0.5) == (0.25, 0.25, 0.5)
    assert weights.ema(3, 0.5, debias=True) == pytest.approx((1 / 7, 2 / 7, 4 / 7), rel=1e-15)
    assert weights.ema_by_step((0, 1, 3), 0.5) == (0.125, 0.125, 0.75)


@given(st.integers(1, 30), st.integers(1, 20), DECAYS, st.booleans())
def test_even_steps_are_an_ema_with_the_decay_of_the_gap(n, gap, decay, debias):
    steps = [7 + gap * i for i in range(n)]
    found = weights.ema_by_step(steps, decay, debias=debias)
    assert all_close(found, weights.ema(n, decay**gap, debias=debias))


@given(LONG, st.booleans())
def test_the_weights_of_every_ema_sum_to_one(steps, debias):
    _, decays, gaps = zip(*steps, strict=True)
    at = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    for found in (
        weights.ema(len(decays), decays[0], debias=debias),
        weights.ema_by_step(at, decays[0], debias=debias),
        weights.ema_with_decays(decays[1:], debias=debias),
    ):
        assert math.isclose(math.fsum(found), 1, rel_tol=1e-12)


def test_decay_zero_keeps_the_newest_alone():
    assert weights.ema(3, 0) == (0, 0, 1)
    assert weights.ema(3, 0, debias=True) == (0, 0, 1)
    assert weights.ema_by_step((1, 5, 9), 0) == (0, 0, 1)


@given(st.floats(0.5, 0.9999), st.integers(2, 30))
def test_debiasing_takes_weight_from_the_first(decay, n):
    assert weights.ema(n, decay, debias=True)[0] < weights.ema(n, decay)[0]


def test_debiasing_with_nothing_of_the_zero_left_is_starting_from_the_first():
    decays = (0.9, 0.5, 0.99)
    assert weights.ema_with_decays(decays, debias=True, first=0.0) == weights.ema_with_decays(
        decays
    )


@given(st.floats(0.1, 1e6))
def test_the_half_life_and_its_decay_are_inverse(half_life):
    decay = weights.decay_from_half_life(half_life)
    assert math.isclose(weights.half_life(decay), half_life, rel_tol=1e-8)
    assert math.isclose(decay**half_life, 0.5, rel_tol=1e-9)


def test_the_half_life_of_known_decays():
    assert weights.decay_from_half_life(1) == 0.5
    assert math.isclose(weights.half_life(0.999), 692.80, abs_tol=0.01)
    assert weights.half_life(0) == 0
    assert weights.decay_from_half_life(1e-300) == 0


def test_the_span_is_that_of_pandas():
    assert weights.decay_from_span(1) == 0
    assert weights.decay_from_span(3) == 0.5
    assert weights.decay_from_span(19) == 0.9
    # A long EMA's centre of mass lies (span - 1) / 2 back, as a plain mean's does.
    found = weights.ema(2000, weights.decay_from_span(19))
    centre = math.fsum(age * weight for age, weight in enumerate(reversed(found)))
    assert math.isclose(centre, 9, rel_tol=1e-9)


@given(LONG.filter(lambda steps: len(steps) > 1), st.data())
def test_any_debiased_ema_goes_on_from_its_mass_alone(steps, data):
    values, (first, *decays), _ = zip(*steps, strict=True)
    held = data.draw(st.integers(1, len(values) - 1))
    before, after = decays[: held - 1], decays[held - 1 :]
    earlier = combined(weights.ema_with_decays(before, debias=True, first=first), values[:held])
    found = weights.resume_with_decays(after, mass=weights.debias_mass(before, first=first))
    whole = combined(weights.ema_with_decays(decays, debias=True, first=first), values)
    assert close(combined(found, [earlier, *values[held:]]), whole)


@given(st.integers(1, 1000), st.floats(0.01, 0.99999))
def test_the_mass_is_the_bias_correction_of_adam(n, decay):
    found = weights.debias_mass((decay,) * (n - 1), first=decay)
    assert math.isclose(found, 1 - decay**n, rel_tol=1e-8)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.999])
def test_the_ema_is_that_of_torch(decay):
    torch.manual_seed(3)
    models = [torch.nn.Linear(3, 2, dtype=torch.float64) for _ in range(9)]
    average = AveragedModel(models[0], multi_avg_fn=get_ema_multi_avg_fn(decay))
    for model in models:
        average.update_parameters(model)
    found = weights.ema(len(models), decay)
    for name, theirs in average.module.named_parameters():
        ours = sum(
            weight * dict(model.named_parameters())[name]
            for weight, model in zip(found, models, strict=True)
        )
        torch.testing.assert_close(theirs, ours, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("decay", [-0.1, 1, 1.5, math.nan])
def test_a_decay_outside_zero_to_one_is_refused(decay):
    for call in (
        lambda: weights.ema(3, decay),
        lambda: weights.ema_by_step((1, 2), decay),
        lambda: weights.ema_with_decays((0.5, decay)),
        lambda: weights.ema_with_decays((), debias=True, first=decay),
        lambda: weights.half_life(decay),
        lambda: weights.resume_with_decays((decay,)),
    ):
        with pytest.raises(RequestError, match=r"decay .* is not in \[0, 1\)"):
            call()


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_a_half_life_or_a_span_that_is_no_positive_number_is_refused(value):
    with pytest.raises(RequestError, match="half-life"):
        weights.decay_from_half_life(value)
    with pytest.raises(RequestError, match="span"):
        weights.decay_from_span(value)


def test_a_half_life_or_a_span_whose_decay_rounds_to_one_is_refused():
    with pytest.raises(RequestError, match="half-life 1e\\+17 is too long"):
        weights.decay_from_half_life(1e17)
    with pytest.raises(RequestError, match="span 1e\\+17 is too long"):
        weights.decay_from_span(1e17)
    with pytest.raises(RequestError, match="at least 1"):
        weights.decay_from_span(0.5)


def test_steps_that_do_not_increase_are_named():
    with pytest.raises(RequestError, match="Step 200 comes after step 300"):
        weights.ema_by_step((100, 300, 200), 0.9)
    with pytest.raises(RequestError, match="Step 100 comes after step 100"):
        weights.decays_by_step((100, 100, 200), 0.9)
    with pytest.raises(RequestError, match="not a finite number"):
        weights.ema_by_step((1, math.nan), 0.9)


def test_an_ema_of_nothing_is_refused():
    with pytest.raises(RequestError, match="number of checkpoints is 0"):
        weights.ema(0, 0.9)
    with pytest.raises(RequestError, match="nothing to average"):
        weights.ema_by_step((), 0.9)
    with pytest.raises(RequestError, match="new checkpoints is 0"):
        weights.resume_with_decays(())


@pytest.mark.parametrize("mass", [0, -0.5, 1.01, math.nan])
def test_a_mass_outside_zero_to_one_is_refused(mass):
    with pytest.raises(RequestError, match="mass"):
        weights.resume_with_decays((0.9,), mass=mass)
