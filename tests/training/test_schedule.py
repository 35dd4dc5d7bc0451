"""Learning rates: torch's SWALR, the formula of the paper, and other schedulers beside them."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.optim.swa_utils import SWALR
from training_models import cyclic

from swavg.errors import RequestError
from swavg.training.schedule import SWASchedule


def optimizer(*rates):
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=1.0)


@given(
    steps=st.integers(0, 12),
    how=st.sampled_from(["cos", "linear"]),
    first=st.floats(1e-4, 1),
    last=st.floats(1e-4, 1),
)
@settings(max_examples=40, deadline=None)
def test_annealing_is_torchs_swalr(steps, how, first, last):
    ours, theirs = optimizer(first, 0.3), optimizer(first, 0.3)
    schedule = SWASchedule(ours, lr=[last, 0.07], anneal_steps=steps, anneal=how)
    oracle = SWALR(theirs, [last, 0.07], anneal_epochs=steps, anneal_strategy=how)
    for _ in range(steps + 3):
        schedule.step()
        with warnings.catch_warnings():
            # It wants an optimizer step before.
            warnings.simplefilter("ignore", UserWarning)
            oracle.step()
        assert schedule.get_last_lr() == oracle.get_last_lr()
    assert schedule.get_last_lr() == [last, 0.07]


@given(
    cycle=st.integers(1, 9),
    rates=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    before=st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None)
def test_cycles_are_those_of_the_paper(cycle, rates, before):
    lows, highs = zip(*(sorted(rates[i : i + 2]) for i in (0, 2)), strict=True)
    schedule = SWASchedule(optimizer(0.5, 0.3), lr=highs, lr_low=lows, cycle=cycle)
    schedule.load_state_dict({"steps": before, "first": [0.5, 0.3]})
    for i in range(before + 1, before + 2 * cycle + 1):
        schedule.step()
        expected = [cyclic(i, cycle, high, low) for high, low in zip(highs, lows, strict=True)]
        assert schedule.get_last_lr() == pytest.approx(expected, rel=1e-9, abs=1e-9)
        if i % cycle == 0:
            # Where weights are averaged the rate is the low one, to the bit.
            assert schedule.get_last_lr() == list(lows)


def test_a_scheduler_that_also_sets_the_rate_changes_nothing_of_those_that_follow():
    opt = optimizer(0.5)
    other = StepLR(opt, 1, gamma=0.1)
    schedule = SWASchedule(opt, lr=0.1, anneal_steps=4, anneal="linear")
    rates = []
    for _ in range(5):
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
        opt.step()
        other.step()
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.1])
    assert schedule.state_dict() == {"steps": 5, "first": [0.5]}


def test_nothing_is_left_in_the_optimizer_and_nobody_is_warned():
    opt = optimizer(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SWASchedule(opt, lr=0.1).step()
    assert set(opt.param_groups[0]) == set(optimizer(0.5).param_groups[0])


def test_it_starts_from_the_rate_of_then_and_resumes():
    opt = optimizer(0.5)
    schedule = SWASchedule(opt, lr=0.1, anneal_steps=5, anneal="linear")
    opt.param_groups[0]["lr"] = 0.3
    rates = []
    for _ in range(2):
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    again = SWASchedule(optimizer(0.9), lr=0.1, anneal_steps=5, anneal="linear")
    again.load_state_dict(schedule.state_dict())
    for _ in range(3):
        again.step()
        rates.append(again.get_last_lr()[0])
    assert rates == pytest.approx([0.26, 0.22, 0.18, 0.14, 0.1])


def test_a_rate_that_is_a_tensor_is_set_in_place():
    rate = torch.tensor(0.5)
    opt = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=rate, capturable=True)
    SWASchedule(opt, lr=0.25).step()
    assert opt.param_groups[0]["lr"].item() == 0.25
    assert isinstance(opt.param_groups[0]["lr"], torch.Tensor)


def test_a_group_that_is_added_follows():
    opt = optimizer(0.5)
    schedule = SWASchedule(opt, lr=0.1, anneal_steps=4, anneal="linear")
    schedule.step()
    opt.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.9})
    for _ in range(3):
        schedule.step()
    assert schedule.get_last_lr() == [0.1, 0.1]


@pytest.mark.parametrize("options", [{"anneal_steps": 2.0}, {"lr_low": 0.1, "cycle": 2.0}])
def test_whole_numbers_may_be_floats(options):
    schedule = SWASchedule(optimizer(0.5), lr=0.1, **options)
    schedule.step()
    schedule.step()
    assert schedule.get_last_lr() == [0.1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": [0.1, 0.2]}, "lr has 2 rates for 1 parameter groups"),
        ({"lr": -1}, "lr is -1;"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": 0.1, "lr_low": 0.01}, "needs both lr_low and cycle"),
        ({"lr": 0.1, "cycle": 3}, "needs both lr_low and cycle"),
        ({"lr": 0.1, "lr_low": 0.01, "cycle": 0}, "cycle is 0"),
        ({"lr": 0.1, "lr_low": 0.01, "cycle": 3, "anneal_steps": 2}, "no anneal_steps"),
        ({"lr": 0.1, "anneal_steps": -2}, "anneal_steps is -2"),
        ({"lr": 0.1, "anneal": "exp"}, "anneal is 'exp'"),
    ],
)
def test_options_are_checked(options, said):
    with pytest.raises(RequestError, match=said):
        SWASchedule(optimizer(0.5), **options)
