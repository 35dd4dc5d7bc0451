"""Running means, sliding windows and windows between running means."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn

from swavg import weights
from swavg.errors import RequestError

VALUES = st.floats(-10, 10)


def combined(found, values):
    return math.fsum(weight * value for weight, value in zip(found, values, strict=True))


def mean(values):
    return math.fsum(values) / len(values)


def close(one, other):
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)


def test_the_running_mean_by_hand():
    assert weights.running(3) == (0.75, 0.25)
    assert weights.running(2, 2) == (0.5, 0.25, 0.25)


def test_the_running_mean_is_that_of_torch():
    torch.manual_seed(3)
    models = [torch.nn.Linear(3, 2, dtype=torch.float64) for _ in range(9)]
    average = AveragedModel(models[0], multi_avg_fn=get_swa_multi_avg_fn())
    average.update_parameters(models[0])
    ours = dict(models[0].named_parameters())
    for n, model in enumerate(models[1:], 1):
        average.update_parameters(model)
        kept, taken = weights.running(n)
        ours = {k: kept * ours[k] + taken * p for k, p in model.named_parameters()}
    assert int(average.n_averaged) == len(models)
    for name, theirs in average.module.named_parameters():
        # torch divides by its count in float32, even for float64 parameters.
        torch.testing.assert_close(theirs, ours[name], rtol=0, atol=1e-7)
        whole = sum(dict(model.named_parameters())[name] for model in models) / len(models)
        torch.testing.assert_close(ours[name], whole, rtol=1e-12, atol=1e-12)


@given(st.lists(VALUES, min_size=1, max_size=20), st.lists(VALUES, max_size=20), st.data())
def test_a_window_that_slides_equals_the_mean_of_what_it_holds(held, added, data):
    dropped = data.draw(st.integers(0, len(held) - (not added)))
    if not added and dropped == 0:
        return
    found = weights.slide(len(held), len(added), dropped)
    inputs = [mean(held), *added, *held[:dropped]]
    assert close(combined(found, inputs), mean([*held[dropped:], *added]))
    assert math.isclose(math.fsum(found), 1, rel_tol=1e-9)


def test_one_in_and_one_out_by_hand():
    assert weights.slide(4, 1, 1) == (1, 0.25, -0.25)
    assert weights.slide(4, 0, 2) == (2, -0.5, -0.5)


def test_the_window_of_icefall_by_hand():
    assert weights.window(8000, 10000) == (-4, 5)


def test_counts_that_make_no_average_are_refused():
    for n in (0, -1):
        with pytest.raises(RequestError, match=f"in the average is {n}"):
            weights.running(n, 1)
        with pytest.raises(RequestError, match=f"in the average is {n}"):
            weights.slide(n, 1, 1)
    with pytest.raises(RequestError, match="new checkpoints is 0"):
        weights.running(3, 0)
    with pytest.raises(RequestError, match="to add is -1"):
        weights.slide(3, -1, 0)
    with pytest.raises(RequestError, match="to drop is -1"):
        weights.slide(3, 0, -1)
    with pytest.raises(RequestError, match="nothing to add"):
        weights.slide(3, 0, 0)
    with pytest.raises(RequestError, match=r"4 checkpoints to drop.*only 3"):
        weights.slide(3, 2, 4)
    with pytest.raises(RequestError, match="leaves nothing"):
        weights.slide(3, 0, 3)


@pytest.mark.parametrize(
    ("start", "end"), [(0, 5), (-1, 5), (5, 5), (6, 5), (math.nan, 5), (5, math.inf)]
)
def test_a_window_that_covers_nothing_is_refused(start, end):
    with pytest.raises(RequestError, match="covers"):
        weights.window(start, end)
