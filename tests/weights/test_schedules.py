"""Every schedule equals its running form: what it does to an average as checkpoints come.

A new schedule is one row of :data:`SCHEDULES`.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swavg import weights


@dataclass(frozen=True)
class Run:
    """Checkpoints of one number each, oldest first, at least two."""

    values: Sequence[float]
    steps: Sequence[int]
    decay: float
    held: int
    """How many of the checkpoints an earlier average holds, where there is one: less than all."""


@dataclass(frozen=True)
class Schedule:
    name: str
    average: Callable[[Run], float]
    """By the weights in closed form."""
    running: Callable[[Run], float]
    """One checkpoint after the other."""


def combined(found, values):
    return math.fsum(weight * value for weight, value in zip(found, values, strict=True))


def fed(average, decays):
    """An EMA of an average and new values, ``decays`` of which come with each."""
    for value, decay in decays:
        average = decay * average + (1 - decay) * value
    return average


def from_first(decays_of):
    """The running form of an EMA that is started from the first checkpoint."""
    return lambda run: fed(run.values[0], zip(run.values[1:], decays_of(run), strict=True))


def from_zero(decays_of):
    """... that is started from zero, and divided by what a constant 1 would have become."""

    def running(run):
        decays = decays_of(run)
        ones = [1.0] * len(run.values)
        mass = fed(0.0, zip(ones, decays, strict=True))
        return fed(0.0, zip(run.values, decays, strict=True)) / mass

    return running


def constant(run):
    return [run.decay] * (len(run.values) - 1)


def per_step(run):
    return [run.decay ** (after - before) for before, after in pairwise(run.steps)]


def warm(name, **options):
    def decays(run):
        updates = range(1, len(run.values))
        return [weights.warmup_decay(name, t, run.decay, **options) for t in updates]

    return decays


def power(run):
    """``beta(t)`` of the exponent 1 / decay - 1, which is any number from 0."""
    gamma = 1 / max(run.decay, 0.05) - 1
    return [(1 - 1 / t) ** (gamma + 1) for t in range(2, len(run.values) + 1)]


def power_average(run):
    gamma = 1 / max(run.decay, 0.05) - 1
    decays = [weights.beta(t, gamma) for t in range(2, len(run.values) + 1)]
    return combined(weights.ema_with_decays(decays), run.values)


def mean_of(run):
    average = run.values[0]
    for n, value in enumerate(run.values[1:], 1):
        average += (value - average) / (n + 1)
    return average


def of_all(weights_of):
    return lambda run: combined(weights_of(run), run.values)


def resumed(decays_of, *, debias):
    """The EMA of the first ``held``, and the later ones added to it."""

    def average(run):
        decays = decays_of(run)
        first = decays[0] if debias else None
        before, after = decays[: run.held - 1], decays[run.held - 1 :]
        early = weights.ema_with_decays(before, debias=debias, first=first)
        mass = weights.debias_mass(before, first=first) if debias else 1.0
        going_on = weights.resume_with_decays(after, mass=mass)
        return combined(
            going_on, [combined(early, run.values[: run.held]), *run.values[run.held :]]
        )

    return average


def early_mean(run):
    return combined(weights.mean(run.held), run.values[: run.held])


def updated(run):
    new = run.values[run.held :]
    return combined(weights.running(run.held, len(new)), [early_mean(run), *new])


def slid(run):
    """A window over the first ``held``, moved along to the newest ``held``."""
    new = run.values[run.held :]
    old = run.values[: len(run.values) - run.held]
    average, window = early_mean(run), deque(run.values[: run.held])
    if len(new) <= run.held:
        found = weights.slide(run.held, len(new), len(old))
        return combined(found, [average, *new, *old])
    for value in new:
        found = weights.slide(run.held, 1, 1)
        average = combined(found, [average, value, window.popleft()])
        window.append(value)
    return average


def sliding(run):
    window = deque(run.values[: run.held], maxlen=run.held)
    window.extend(run.values[run.held :])
    return sum(window) / len(window)


def between(run):
    found = weights.window(run.held, len(run.values))
    return combined(found, [early_mean(run), combined(weights.mean(len(run.values)), run.values)])


def after_held(run):
    return mean_of(Run(run.values[run.held :], (), 0, 0))


EMA = [
    ("per checkpoint", constant, lambda run, **o: weights.ema(len(run.values), run.decay, **o)),
    ("per step", per_step, lambda run, **o: weights.ema_by_step(run.steps, run.decay, **o)),
]
WARM = [
    ("tensorflow", {}),
    ("inverse-gamma", {}),
    ("inverse-gamma", {"gamma": 5.0, "power": 0.75}),
    ("yolo", {}),
    ("yolo", {"tau": 10.0}),
]
SCHEDULES = [
    Schedule("SWA", of_all(lambda run: weights.mean(len(run.values))), mean_of),
    Schedule("SWA, updated", updated, mean_of),
    Schedule("sliding window", slid, sliding),
    Schedule("window between two averages", between, after_held),
    Schedule("power-function EMA", power_average, from_first(power)),
    *(Schedule(f"EMA {unit}", of_all(closed), from_first(decays)) for unit, decays, closed in EMA),
    *(
        Schedule(
            f"EMA {unit}, debiased",
            of_all(lambda run, closed=closed: closed(run, debias=True)),
            # Nothing before the first is known: it stands for a gap as long as the second's.
            from_zero(lambda run, decays=decays: [decays(run)[0], *decays(run)]),
        )
        for unit, decays, closed in EMA
    ),
    *(Schedule(f"EMA {u}, resumed", resumed(d, debias=False), from_first(d)) for u, d, _ in EMA),
    *(
        Schedule(
            f"EMA {unit}, debiased and resumed",
            resumed(decays, debias=True),
            from_zero(lambda run, decays=decays: [decays(run)[0], *decays(run)]),
        )
        for unit, decays, _ in EMA
    ),
    *(
        Schedule(
            f"EMA, {name} {options or ''}",
            of_all(lambda run, decays=decays: weights.ema_with_decays(decays(run))),
            from_first(decays),
        )
        for name, options in WARM
        for decays in [warm(name, **options)]
    ),
    Schedule(
        "EMA, tensorflow, resumed",
        resumed(warm("tensorflow"), debias=False),
        from_first(warm("tensorflow")),
    ),
]


@st.composite
def runs(draw):
    at = st.tuples(st.floats(-10, 10), st.integers(1, 500))
    values, gaps = zip(*draw(st.lists(at, min_size=2, max_size=30)), strict=True)
    steps = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    decay = draw(st.one_of(st.just(0.0), st.floats(1e-6, 0.999999)))
    return Run(values, steps, decay, draw(st.integers(1, len(values) - 1)))


QUICK = settings(max_examples=30, deadline=None)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
@given(run=runs())
@QUICK
def test_every_schedule_equals_its_running_form(schedule, run):
    expected = schedule.running(run)
    assert math.isclose(schedule.average(run), expected, rel_tol=1e-9, abs_tol=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
@given(run=runs(), value=st.floats(-10, 10))
@QUICK
def test_equal_checkpoints_give_themselves(schedule, run, value):
    same = Run([value] * len(run.values), run.steps, run.decay, run.held)
    assert math.isclose(schedule.average(same), value, rel_tol=1e-9, abs_tol=1e-9)


def test_every_warmup_is_in_the_table():
    assert {name for name, _ in WARM} == set(weights.WARMUPS)
