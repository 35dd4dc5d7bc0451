"""SWA: torch's running mean to the bit, the schedule, swapping, resuming, and misuse."""

import copy
import io
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.optim.swa_utils import AveragedModel
from torch.optim.swa_utils import update_bn as torch_update_bn
from training_models import (
    assert_same,
    batches,
    cyclic,
    network,
    one_thread,
    sgd,
    snapshot,
    train,
    wander,
)

from swavg import weights
from swavg.errors import MismatchError, RequestError
from swavg.training.swa import SWA


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def torchs(model):
    """The oracle, with its arithmetic of the processor whichever it would choose here."""
    return AveragedModel(model, avg_fn=lambda a, w, n: a + (w - a) / (n + 1))


# ---- Values.


@pytest.mark.parametrize("around", [True, False])
@pytest.mark.parametrize(("start", "every"), [(0, 1), (3, 2), (2, 3)])
def test_it_is_torchs_averaged_model_bit_for_bit(around, start, every):
    model = network()
    oracle = torchs(model)
    inner = sgd(model)
    swa = SWA(inner, start, every, model=model) if around else SWA(model, start, every)
    optimizer = swa if around else inner
    done = 0

    def after():
        nonlocal done
        done += 1
        if not around:
            swa.step()
        if done > start and (done - start) % every == 0:
            oracle.update_parameters(model)

    train(model, optimizer, batches(9), after)
    assert swa.n == (9 - start) // every == int(oracle.n_averaged)
    assert_same(swa.averaged(), oracle.module.state_dict())


def test_it_is_torchs_own_choice_of_arithmetic_on_the_processor():
    model = network()
    oracle, swa = AveragedModel(model), SWA(model, 0)
    wander(model, 7, lambda: (swa.step(), oracle.update_parameters(model)))
    assert_same(swa.averaged(), oracle.module.state_dict())


@given(steps=st.integers(1, 7))
@settings(max_examples=8, deadline=None)
def test_it_is_the_mean(steps):
    model = nn.Linear(3, 2).double()
    swa, taken = SWA(model, 0), []
    wander(model, steps, lambda: (swa.step(), taken.append(snapshot(model))))
    for name, found in swa.averaged().items():
        expected = sum(w * state[name] for w, state in zip(weights.mean(steps), taken, strict=True))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_half_precision_is_accumulated_in_float32():
    model = nn.Linear(8, 8).to(torch.bfloat16)
    swa, taken = SWA(model, 0), []
    wander(model, 100, lambda: (swa.step(), taken.append(snapshot(model))))
    found = swa.averaged()["weight"]
    exact = torch.stack([state["weight"].double() for state in taken]).mean(0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


def test_equal_weights_average_to_themselves():
    model = network()
    swa = SWA(model, 0)
    for _ in range(5):
        swa.step()
    assert_same(swa.averaged(), snapshot(model))


def test_large_groups_go_in_parts_with_the_same_result(monkeypatch):
    def run():
        model = nn.Sequential(*(nn.Linear(5, 5) for _ in range(4)))
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.5)
        swa = SWA(model, 0)
        wander(model, 3, swa.step)
        return swa.averaged()

    whole = run()
    monkeypatch.setattr("swavg.training.moving.CHUNK", 7)
    assert_same(run(), whole)


def test_nothing_is_held_before_the_first_average():
    model = network()
    swa = SWA(model, 3)
    wander(model, 3, swa.step)
    for act in (swa.swap, swa.averaged, swa.swapped().__enter__):
        with pytest.raises(RequestError, match="Nothing was averaged yet, after 3 steps"):
            act()
    assert swa.n == 0
    swa.step()
    assert swa.n == 1


# ---- Learning rates.


@pytest.mark.parametrize("around", [True, False])
def test_the_rate_anneals_from_the_start_on_and_stays(around):
    model = network()
    inner = sgd(model)
    options = {"lr": 0.01, "anneal_steps": 4, "anneal": "linear"}
    swa = SWA(inner, 2, **options) if around else SWA(model, 2, optimizer=inner, **options)
    rates = []
    step = inner.step
    inner.step = lambda *given: (rates.append(inner.param_groups[0]["lr"]), step(*given))[1]
    if around:
        train(model, swa, batches(8))
    else:
        train(model, inner, batches(8), swa.step)
    assert rates == pytest.approx([0.05, 0.05, 0.04, 0.03, 0.02, 0.01, 0.01, 0.01])


def test_cycles_end_where_weights_are_averaged():
    model = network()
    inner = sgd(model)
    swa = SWA(inner, 2, 3, lr=0.05, lr_low=0.001, model=model)
    rates, ends = [], []

    def after():
        rates.append(inner.param_groups[0]["lr"])
        if swa.n > len(ends):
            ends.append(rates[-1])

    train(model, swa, batches(11), after)
    assert rates[2:] == pytest.approx([cyclic(i, 3, 0.05, 0.001) for i in range(1, 10)])
    assert ends == [0.001] * 3


def test_a_scheduler_and_a_scaler_take_it_for_an_optimizer():
    model = network()
    inner = sgd(model)
    swa = SWA(inner, 4, 1, lr=0.003, model=model)
    assert isinstance(swa, torch.optim.Optimizer)
    scheduler = StepLR(swa, 2, gamma=0.1)
    scaler = torch.amp.GradScaler("cpu")
    rates = []
    for images, labels in batches(6):
        swa.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(images), labels)).backward()
        scaler.step(swa)
        scaler.update()
        rates.append(inner.param_groups[0]["lr"])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scheduler.step()
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.005, 0.003, 0.003])
    assert swa.n == 2


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_does_not_count(fused):
    model = network()
    before = snapshot(model)
    swa = SWA(sgd(model, fused=fused), 0, 1, model=model)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(batches(1)[0][0]).sum() * float("inf")).backward()
    scaler.step(swa)
    assert (swa.steps, swa.n) == (0, 0)
    assert torch.equal(model[4].weight, before["4.weight"])


def test_it_is_its_optimizer_in_all_else():
    model = network()
    inner = sgd(model)
    swa = SWA(inner, 0, 1)
    assert swa.param_groups is inner.param_groups
    assert swa.state is inner.state
    assert swa.defaults is inner.defaults
    calls = []
    swa.register_step_post_hook(lambda *given: calls.append(1))
    train(model, swa, batches(1))
    assert calls == [1]
    swa.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
    closure_ran = swa.step(lambda: torch.tensor(3.0))
    assert closure_ran == 3
    assert "SGD" in repr(swa)
    with pytest.raises(AttributeError, match="'SWA' object has no attribute 'nonsense'"):
        _ = SWA(model, 0).nonsense
    with pytest.raises(AttributeError, match="Neither SWA nor its SGD has an attribute 'nonsense'"):
        _ = swa.nonsense


def test_a_group_that_is_added_is_averaged_from_then_on():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    swa = SWA(torch.optim.SGD(first.parameters(), lr=0.1), 0, 1)
    for parameter in first.parameters():
        parameter.grad = torch.ones_like(parameter)
    swa.step()
    swa.add_param_group({"params": list(second.parameters())})
    start = second.weight.detach().clone()
    for parameter in second.parameters():
        parameter.grad = torch.ones_like(parameter)
    swa.step()
    swa.swap()
    torch.testing.assert_close(second.weight, start - 0.05)


# ---- Swapping.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swapping_twice_is_as_before(dtype):
    model = network().to(dtype)
    swa = SWA(model, 0)
    wander(model, 3, swa.step)
    own, average = snapshot(model), swa.averaged(dtype="model")
    swa.swap()
    assert swa.is_swapped
    assert_same(snapshot(model), average)
    swa.swap()
    assert not swa.is_swapped
    assert_same(snapshot(model), own)
    for block in (swa.swapped, swa.applied):
        with block():
            assert_same(snapshot(model), average)
        assert_same(snapshot(model), own)
    with pytest.raises(ZeroDivisionError), swa.swapped():
        raise ZeroDivisionError
    assert_same(snapshot(model), own)


def test_misuse_is_told():
    model = network()
    inner = sgd(model)
    swa = SWA(inner, 0, 1, model=model)
    train(model, swa, batches(1))
    state = swa.state_dict()
    swa.swap()
    for act in (
        swa.step, swa.update, swa.swapped().__enter__,
        lambda: swa.load_state_dict(state), lambda: swa.add_param_group({"params": []}),
    ):  # fmt: skip
        with pytest.raises(RequestError, match="has the averaged weights now"):
            act()
    with pytest.warns(match=r"The model has the average now: .* Call swap\(\) first"):
        swa.state_dict()
    swa.swap()
    nameless = SWA(inner, 0)
    nameless.update()
    for act in (nameless.averaged, lambda: nameless.update_bn(batches(1))):
        with pytest.raises(RequestError, match="needs the model"):
            act()
    with pytest.raises(RequestError, match="cannot be pickled"):
        copy.deepcopy(swa)
    with pytest.raises(RequestError, match=r"zero_grad\(\) is the optimizer's"):
        SWA(model, 0).zero_grad()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"start": -1}, "start is -1"),
        ({"start": 0, "every": 0}, "every is 0"),
        ({"start": 0, "lr": 0.1}, "lr needs the optimizer"),
        ({"start": 0, "lr_low": 0.1}, "need lr"),
        ({"start": 0, "anneal_steps": 3}, "need lr"),
        ({"start": 0, "model": nn.Linear(1, 1)}, "Two models"),
    ],
)
def test_options_are_checked(options, said):
    with pytest.raises(RequestError, match=said):
        SWA(network(), **options)


def test_rates_need_a_start_and_one_optimizer():
    inner = sgd(network())
    with pytest.raises(RequestError, match="lr needs start"):
        SWA(inner, lr=0.1)
    with pytest.raises(RequestError, match="Two optimizers"):
        SWA(inner, 0, optimizer=inner)


# ---- Batch-norm.


def test_batch_norm_of_the_average_is_torchs_and_the_models_own_stay():
    model = network()
    swa, oracle = SWA(model, 0), torchs(model)
    train(model, sgd(model), batches(4), lambda: (swa.step(), oracle.update_parameters(model)))
    own = snapshot(model)
    data = batches(3, seed=4)
    names = swa.update_bn(data)
    torch_update_bn(data, oracle.module)
    assert names == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert_same(swa.averaged(), oracle.module.state_dict())
    assert_same(snapshot(model), own)
    swa.swap()
    assert_same(snapshot(model), oracle.module.state_dict())
    swa.update_bn(batches(2))
    assert model[1].num_batches_tracked == 2


def test_the_loop_of_torchcontrib_runs_as_it_is():
    model = network()
    base = sgd(model)
    optimizer = SWA(base, 2, 2, 0.02)
    train(model, optimizer, batches(6))
    optimizer.update_swa()
    assert optimizer.n == 3
    optimizer.swap_swa_sgd()
    optimizer.bn_update(batches(3), model)
    assert model[1].num_batches_tracked == 3


# ---- Resuming.


@pytest.mark.parametrize("around", [True, False])
@pytest.mark.parametrize("cut", [1, 4, 6])
@pytest.mark.parametrize("rates", [{"anneal_steps": 3}, {"lr_low": 0.002}])
def test_resuming_equals_no_interruption(around, cut, rates):
    def make(seed):
        model = network(seed)
        inner = sgd(model)
        if around:
            return model, inner, SWA(inner, 3, 2, lr=0.02, model=model, **rates)
        return model, inner, SWA(model, 3, 2, lr=0.02, optimizer=inner, **rates)

    def go(model, inner, swa, data):
        if around:
            train(model, swa, data)
        else:
            train(model, inner, data, swa.step)

    data = batches(9)
    whole = make(0)
    go(*whole, data)
    part = make(0)
    go(*part, data[:cut])
    state, then = through_a_file(part[2].state_dict()), snapshot(part[0])
    resumed = make(7)
    resumed[0].load_state_dict(then)
    resumed[2].load_state_dict(state)
    go(*resumed, data[cut:])
    assert resumed[2].n == whole[2].n == 3
    assert_same(snapshot(resumed[0]), snapshot(whole[0]))
    assert_same(resumed[2].averaged(), whole[2].averaged())


def test_a_state_of_other_settings_or_another_model_is_refused():
    model = network()
    swa = SWA(model, 0, 2)
    wander(model, 4, swa.step)
    state = swa.state_dict()
    with pytest.warns(UserWarning, match="made with every 2; it goes on with 3"):
        SWA(model, 0, 3).load_state_dict(state)
    with pytest.raises(RequestError, match="made without an optimizer"):
        SWA(sgd(model), 0, 2).load_state_dict(state)
    with pytest.raises(MismatchError, match=r"has no '0\.bias'"):
        SWA(nn.Linear(2, 2), 0, 2).load_state_dict(state)
    with pytest.raises(RequestError, match="no state dict of SWA"):
        swa.load_state_dict(sgd(model).state_dict())
