"""Warm-ups against the loops of the projects that they are named for."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swavg import weights
from swavg.errors import RequestError

DECAYS = st.one_of(st.just(0.0), st.floats(1e-6, 0.999999))
VALUES = st.floats(-10, 10)


def combined(found, values):
    return math.fsum(weight * value for weight, value in zip(found, values, strict=True))


def close(one, other):
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)


def warmed_up(n, decay, name, start=1, **options):
    """The EMA of ``n`` checkpoints, the second added by the update with t = ``start``."""
    updates = range(start, start + n - 1)
    return weights.ema_with_decays(
        [weights.warmup_decay(name, t, decay, **options) for t in updates]
    )


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
    found = warmed_up(len(values), decay, "tensorflow")
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
    found = warmed_up(len(values), decay, "inverse-gamma", **options)
    assert close(combined(found, values), expected)
    # With the model before training in front, update 0 adds the second of the list.
    found = warmed_up(len(values) + 1, decay, "inverse-gamma", start=0, **options)
    assert close(combined(found, [math.pi, *values]), expected)


@pytest.mark.slow
@given(st.lists(VALUES, min_size=1, max_size=40), DECAYS, st.floats(1, 5000))
def test_the_yolo_warmup_equals_its_loop(values, decay, tau):
    found = warmed_up(len(values), decay, "yolo", tau=tau)
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


def test_a_warmup_to_one_comes_near_it():
    assert weights.warmup_decay("tensorflow", 5, 1) == 6 / 15
    assert weights.warmup_decay("yolo", 2000, 1.0) == 1 - 1 / math.e
    assert weights.warmup_decay("inverse-gamma", 7, 1) == 0.75
    for decay in (-0.1, 1.5, math.nan):
        with pytest.raises(RequestError, match=r"decay .* is not in \[0, 1\]"):
            weights.warmup_decay("yolo", 1, decay)


def test_a_warmup_by_another_name_or_with_values_out_of_range_is_refused():
    with pytest.raises(RequestError, match=r"no warm-up called 'linear'.*inverse-gamma"):
        weights.warmup_decay("linear", 1, 0.9)
    with pytest.raises(RequestError, match=r"'yolo' has no 'gamma'; it has tau\."):
        weights.warmup_decay("yolo", 1, 0.9, gamma=2)
    with pytest.raises(RequestError, match="update is -1"):
        weights.warmup_decay("yolo", -1, 0.9)
    for name, option in (("inverse-gamma", "gamma"), ("inverse-gamma", "power"), ("yolo", "tau")):
        with pytest.raises(RequestError, match=f"{option} is 0"):
            weights.warmup_decay(name, 1, 0.9, **{option: 0})
    with pytest.raises(RequestError, match=r"smallest decay 0\.95"):
        weights.warmup_decay("inverse-gamma", 1, 0.9, minimum=0.95)
