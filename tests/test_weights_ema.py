"""EMA schedules against their running forms, and against the projects that they are named for."""

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


def run_from_first(values, decays):
    state = values[0]
    for value, decay in zip(values[1:], decays, strict=True):
        state = decay * state + (1 - decay) * value
    return state


def run_debiased(values, decays):
    """From zero; ``decays`` has one for each value, the first included."""
    state = mass = 0.0
    for value, decay in zip(values, decays, strict=True):
        state = decay * state + (1 - decay) * value
        mass = decay * mass + (1 - decay)
    return state / mass


def close(one, other):
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)


def all_close(found, expected):
    return found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(st.lists(VALUES, min_size=1, max_size=40), DECAYS)
def test_the_ema_equals_its_running_form_from_the_first(values, decay):
    found = weights.ema(len(values), decay)
    assert close(combined(found, values), run_from_first(values, [decay] * (len(values) - 1)))


@given(st.lists(VALUES, min_size=1, max_size=40), DECAYS)
def test_the_debiased_ema_equals_its_running_form_from_zero(values, decay):
    found = weights.ema(len(values), decay, debias=True)
    assert close(combined(found, values), run_debiased(values, [decay] * len(values)))


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


@given(LONG)
def test_an_ema_with_any_decays_equals_its_running_form(steps):
    values, decays, _ = zip(*steps, strict=True)
    found = weights.ema_with_decays(decays[1:])
    assert close(combined(found, values), run_from_first(values, decays[1:]))
    debiased = weights.ema_with_decays(decays[1:], debias=True, first=decays[0])
    assert close(combined(debiased, values), run_debiased(values, decays))


@given(LONG, DECAYS)
def test_an_ema_over_uneven_steps_equals_its_running_form(steps, decay):
    values, _, gaps = zip(*steps, strict=True)
    at = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    per_gap = [decay**gap for gap in gaps[1:]]
    found = weights.ema_by_step(at, decay)
    assert close(combined(found, values), run_from_first(values, per_gap))
    debiased = weights.ema_by_step(at, decay, debias=True)
    if len(values) == 1:
        assert debiased == (1.0,)
    else:
        assert close(combined(debiased, values), run_debiased(values, [per_gap[0], *per_gap]))


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


def run_torch_ema(values, decay):
    """torch_ema: the shadow starts as the model; its first update has num_updates = 1."""
    shadow = values[0]
    for updates, value in enumerate(values[1:], 1):
        now = min(decay, (1 + updates) / (10 + updates))
        shadow -= (1 - now) * (shadow - value)
    return shadow


def run_diffusers(values, decay, gamma, power, minimum):
    """diffusers: one step after another from the first, which has t = 0 and is a copy."""
    shadow = math.pi
    for optimization_step, value in enumerate(values, 1):
        t = max(0, optimization_step - 1)
        now = 0.0 if t <= 0 else max(min(1 - (1 + t / gamma) ** -power, decay), minimum)
        shadow = now * shadow + (1 - now) * value
    return shadow


def run_yolo(values, decay, tau):
    state = values[0]
    for updates, value in enumerate(values[1:], 1):
        now = decay * (1 - math.exp(-updates / tau))
        state = now * state + (1 - now) * value
    return state


@given(st.lists(VALUES, min_size=1, max_size=40), DECAYS)
def test_the_tensorflow_warmup_equals_the_loop_of_torch_ema(values, decay):
    found = weights.ema_warmup(len(values), decay, "tensorflow")
    assert close(combined(found, values), run_torch_ema(values, decay))


@given(
    st.lists(VALUES, min_size=1, max_size=40),
    DECAYS,
    st.floats(0.1, 50),
    st.floats(0.1, 2),
    st.floats(0, 1),
)
def test_the_inverse_gamma_warmup_equals_the_loop_of_diffusers(values, decay, gamma, power, part):
    minimum = part * decay
    options = {"gamma": gamma, "power": power, "minimum": minimum}
    expected = run_diffusers(values, decay, gamma, power, minimum)
    found = weights.ema_warmup(len(values), decay, "inverse-gamma", **options)
    assert close(combined(found, values), expected)
    # With the model before training in front, update 0 adds the second of the list.
    found = weights.ema_warmup(len(values) + 1, decay, "inverse-gamma", start=0, **options)
    assert close(combined(found, [math.pi, *values]), expected)


@given(st.lists(VALUES, min_size=1, max_size=40), DECAYS, st.floats(1, 5000))
def test_the_yolo_warmup_equals_its_loop(values, decay, tau):
    found = weights.ema_warmup(len(values), decay, "yolo", tau=tau)
    assert close(combined(found, values), run_yolo(values, decay, tau))


def test_warmup_decays_have_their_published_values():
    assert weights.warmup_decay("tensorflow", 0, 0.999) == 0.1
    assert weights.warmup_decay("tensorflow", 1, 0.999) == 2 / 11
    assert weights.warmup_decay("tensorflow", 10**6, 0.999) == 0.999
    # "reaches decay factor 0.999 at 31.6K steps, 0.9999 at 1M steps" (diffusers)
    reached = weights.warmup_decay("inverse-gamma", 31_622, 0.99999)
    assert math.isclose(reached, 0.999, abs_tol=1e-6)
    reached = weights.warmup_decay("inverse-gamma", 10**6, 0.99999)
    assert math.isclose(reached, 0.9999, abs_tol=1e-7)
    assert weights.warmup_decay("inverse-gamma", 0, 0.9, minimum=0.5) == 0
    assert weights.warmup_decay("inverse-gamma", 1, 0.9, minimum=0.5) == 0.5
    assert math.isclose(
        weights.warmup_decay("yolo", 2000, 0.9999), 0.9999 * (1 - 1 / math.e), rel_tol=1e-15
    )


@given(
    st.sampled_from(weights.WARMUPS), st.lists(VALUES, min_size=2, max_size=20), DECAYS, st.data()
)
def test_a_warmed_up_ema_resumed_equals_doing_it_all_at_once(name, values, decay, data):
    held = data.draw(st.integers(1, len(values) - 1))
    earlier = combined(weights.ema_warmup(held, decay, name), values[:held])
    decays = weights.warmup_decays(name, len(values) - held, decay, start=held)
    found = weights.resume_with_decays(decays)
    whole = combined(weights.ema_warmup(len(values), decay, name), values)
    assert close(combined(found, [earlier, *values[held:]]), whole)


@given(st.lists(VALUES, min_size=2, max_size=30), DECAYS, st.booleans(), st.data())
def test_an_ema_resumed_equals_doing_it_all_at_once(values, decay, debias, data):
    held = data.draw(st.integers(1, len(values) - 1))
    earlier = combined(weights.ema(held, decay, debias=debias), values[:held])
    found = weights.resume(held, len(values) - held, decay, debias=debias)
    whole = combined(weights.ema(len(values), decay, debias=debias), values)
    assert close(combined(found, [earlier, *values[held:]]), whole)
    assert math.isclose(math.fsum(found), 1, rel_tol=1e-12)


@given(LONG.filter(lambda steps: len(steps) > 1), DECAYS, st.booleans(), st.data())
def test_an_ema_by_step_resumed_equals_doing_it_all_at_once(steps, decay, debias, data):
    values, _, gaps = zip(*steps, strict=True)
    at = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    held = data.draw(st.integers(1, len(at) - 1))
    earlier = combined(weights.ema_by_step(at[:held], decay, debias=debias), values[:held])
    found = weights.resume_by_step(at[:held], at[held:], decay, debias=debias)
    whole = combined(weights.ema_by_step(at, decay, debias=debias), values)
    assert close(combined(found, [earlier, *values[held:]]), whole)


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
        lambda: weights.resume(1, 1, decay),
        lambda: weights.warmup_decay("yolo", 1, decay),
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
        weights.resume_by_step((100,), (100, 200), 0.9)
    with pytest.raises(RequestError, match="not a finite number"):
        weights.ema_by_step((1, math.nan), 0.9)


def test_an_ema_of_nothing_is_refused():
    with pytest.raises(RequestError, match="number of checkpoints is 0"):
        weights.ema(0, 0.9)
    with pytest.raises(RequestError, match="nothing to average"):
        weights.ema_by_step((), 0.9)
    with pytest.raises(RequestError, match="number of checkpoints is 0"):
        weights.ema_warmup(0, 0.9, "yolo")
    with pytest.raises(RequestError, match="new checkpoints is 0"):
        weights.resume(3, 0, 0.9)
    with pytest.raises(RequestError, match="new checkpoints is 0"):
        weights.resume_by_step((1, 2), (), 0.9)
    with pytest.raises(RequestError, match="holds no checkpoint"):
        weights.resume_by_step((), (1,), 0.9)
    with pytest.raises(RequestError, match="in the EMA is 0"):
        weights.resume(0, 1, 0.9)


def test_a_warmup_by_another_name_or_with_values_out_of_range_is_refused():
    with pytest.raises(RequestError, match=r"no warm-up called 'linear'.*inverse-gamma"):
        weights.warmup_decay("linear", 1, 0.9)
    with pytest.raises(RequestError, match="update is -1"):
        weights.warmup_decay("yolo", -1, 0.9)
    for name, option in (("inverse-gamma", "gamma"), ("inverse-gamma", "power"), ("yolo", "tau")):
        with pytest.raises(RequestError, match=f"{option} is 0"):
            weights.warmup_decay(name, 1, 0.9, **{option: 0})
    with pytest.raises(RequestError, match=r"smallest decay 0\.95"):
        weights.warmup_decay("inverse-gamma", 1, 0.9, minimum=0.95)


@pytest.mark.parametrize("mass", [0, -0.5, 1.01, math.nan])
def test_a_mass_outside_zero_to_one_is_refused(mass):
    with pytest.raises(RequestError, match="mass"):
        weights.resume_with_decays((0.9,), mass=mass)
