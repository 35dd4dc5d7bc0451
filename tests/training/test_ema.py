"""EMA: torch's values to the bit, and every misuse an error that says what to do."""

import copy
import io
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from checkpoints import load, run_request
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training_models import (
    Tied,
    assert_same,
    batches,
    network,
    one_thread,
    sgd,
    snapshot,
    train,
    wander,
)

import swavg
from swavg import methods, weights
from swavg.errors import MismatchError, RequestError
from swavg.series import discover
from swavg.training.ema import EMA
from swavg.training.power import PowerEMA
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


# ---- Values.


@pytest.mark.parametrize("buffers", ["copy", "average"])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.99])
def test_it_is_torchs_averaged_model_bit_for_bit(buffers, decay):
    model = network()
    oracle = AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=buffers == "average"
    )
    oracle.update_parameters(model)
    ema = EMA(model, decay, buffers=buffers)

    def after():
        ema.update()
        oracle.update_parameters(model)

    train(model, sgd(model), batches(5), after)
    expected = oracle.module.state_dict()
    if buffers == "average":
        # torch averages the counter too.
        expected["1.num_batches_tracked"] = model[1].num_batches_tracked
    assert_same(ema.averaged(), expected)
    assert ema.num_updates == 5


@given(decay=st.floats(0, 0.999), steps=st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_it_is_the_weighted_sum_that_the_weights_say(decay, steps):
    model = nn.Linear(3, 2).double()
    ema, taken = EMA(model, decay), [snapshot(model)]
    wander(model, steps, lambda: (ema.update(), taken.append(snapshot(model))))
    numbers = weights.ema(steps + 1, decay)
    for name, found in ema.averaged().items():
        expected = sum(w * state[name] for w, state in zip(numbers, taken, strict=True))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("warmup", weights.WARMUPS)
def test_it_is_what_the_command_line_makes_of_the_snapshots(tmp_path, warmup):
    from checkpoints import save

    model = network()
    ema = EMA(model, 0.9, warmup=warmup)
    save(tmp_path / "step-0.safetensors", model.state_dict())

    def after():
        ema.update()
        save(tmp_path / f"step-{ema.num_updates}.safetensors", model.state_dict())

    wander(model, 4, after)
    series = discover([tmp_path])
    if warmup == "inverse-gamma":
        # Its update 0 is a copy: what was before does not count.
        decays = [weights.warmup_decay(warmup, t, 0.9) for t in range(4)]
        numbers = weights.ema_with_decays(decays)
        assert numbers[0] == 0
        swavg.average(series.paths, numbers, output=tmp_path / "out.safetensors")
    else:
        how = methods.Smoothing(0.9, warmup=warmup)
        run_request(methods.ema(series, how, policy=swavg.Policy()), tmp_path / "out.safetensors")
    made = load(tmp_path / "out.safetensors")
    for name, found in ema.averaged().items():
        torch.testing.assert_close(found, made[name], rtol=1e-6, atol=1e-7)


def test_the_shadow_of_a_bfloat16_model_moves_in_float32():
    model = nn.Linear(4, 4).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(1.0)
    ema = EMA(model, 0.999)
    naive = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.fill_(1.5)
    for _ in range(500):
        ema.update()
        naive = 0.999 * naive + (1 - 0.999) * model.weight.detach()
    # What a shadow of the model's dtype does: each step rounds back to where it was.
    assert torch.equal(naive, torch.ones_like(naive))
    found = ema.averaged()["weight"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((4, 4), 1.5 - 0.5 * 0.999**500), rtol=1e-4, atol=0)
    assert ema.averaged(dtype="model")["weight"].dtype == torch.bfloat16


def test_mixed_dtypes_equal_the_float32_ema_of_the_widened_weights():
    model = network()
    model[4].to(torch.bfloat16)
    wide = copy.deepcopy(model).float()
    ema, oracle = EMA(model, 0.9), EMA(wide, 0.9)

    def after():
        wide.load_state_dict(model.state_dict())
        ema.update()
        oracle.update()

    wander(model, 3, after)
    assert_same(ema.averaged(), oracle.averaged())


@pytest.mark.parametrize("chunk", [7, 26])
def test_large_models_are_converted_in_parts_with_the_same_result(monkeypatch, chunk):
    model = nn.Sequential(*(nn.Linear(5, 5) for _ in range(4))).half()
    whole, parts = EMA(model, 0.9), EMA(model, 0.9)
    wander(model, 2, whole.update)
    model2 = nn.Sequential(*(nn.Linear(5, 5) for _ in range(4))).half()
    model2.load_state_dict(parts.averaged(dtype="model"))
    parts = EMA(model2, 0.9)
    monkeypatch.setattr("swavg.training.moving.CHUNK", chunk)
    wander(model2, 2, parts.update)
    assert_same(parts.averaged(), whole.averaged())


def test_weights_that_stay_give_an_average_that_stays():
    model = network()
    before = snapshot(model)
    ema = EMA(model, 0.9)
    for _ in range(3):
        ema.update()
    assert_same(ema.averaged(), before)


def test_a_complex_parameter_is_averaged_and_an_integer_one_copied():
    model = nn.Module()
    model.phase = nn.Parameter(torch.tensor([1 + 1j, 2j]))
    model.code = nn.Parameter(torch.tensor([1, 2]), requires_grad=False)
    ema = EMA(model, 0.5, frozen="average")
    with torch.no_grad():
        model.phase.mul_(3)
        model.code.add_(1)
    ema.update()
    found = ema.averaged()
    assert torch.equal(found["phase"], torch.tensor([2 + 2j, 4j]))
    assert torch.equal(found["code"], torch.tensor([2, 3]))


def test_every_counts_calls_or_steps():
    model = nn.Linear(2, 2)
    by_calls = EMA(model, 0.5, every=3)
    wander(model, 7, by_calls.update)
    assert by_calls.num_updates == 2
    by_steps = EMA(model, 0.5, every=10)
    for step in (5, 10, 15, 17, 30):
        by_steps.update(step)
    assert by_steps.num_updates == 2
    with pytest.raises(RequestError, match="Step 30 comes after step 30"):
        by_steps.update(30)


# ---- Applying.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("in_place", [False, True])
def test_applied_gives_the_model_the_average_and_then_its_own(dtype, device, in_place):
    model = network().to(dtype)
    ema = EMA(model, 0.5, device=device, in_place=in_place)
    wander(model, 2, ema.update)
    own, average = snapshot(model), ema.averaged(dtype="model")
    wide = ema.averaged()
    places = [parameter.data_ptr() for parameter in model.parameters()]
    with ema.applied():
        assert_same(snapshot(model), average)
        assert_same(ema.averaged(), wide)
        shown = [parameter.data_ptr() for parameter in model.parameters()]
        assert (shown == places) == in_place
    assert_same(snapshot(model), own)
    assert [parameter.data_ptr() for parameter in model.parameters()] == places
    assert_same(ema.averaged(), wide)


def test_after_an_error_in_the_block_the_model_has_its_own():
    model = network()
    ema = EMA(model, 0.5)
    wander(model, 1, ema.update)
    own, average = snapshot(model), ema.averaged()
    with pytest.raises(ZeroDivisionError), ema.applied():
        raise ZeroDivisionError
    assert_same(snapshot(model), own)
    assert_same(ema.averaged(), average)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("direction", ["apply", "restore"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_at_any_copy_loses_nothing(monkeypatch, dtype, direction, when):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).to(dtype)
    ema = EMA(model, 0.5, in_place=True)
    wander(model, 1, ema.update)
    own, average = snapshot(model), ema.averaged()
    copy_ = torch.Tensor.copy_
    state = {"left": None}

    def interrupted(self, source, *more):
        if state["left"] == 0:
            state["left"] = None
            if when == "after":
                copy_(self, source, *more)
            raise KeyboardInterrupt
        result = copy_(self, source, *more)
        if state["left"] is not None:
            state["left"] -= 1
        return result

    monkeypatch.setattr(torch.Tensor, "copy_", interrupted)
    copies = 0
    while True:
        if direction == "restore":
            ema.apply_shadow()
        state["left"] = copies
        try:
            ema.apply_shadow() if direction == "apply" else ema.restore()
        except KeyboardInterrupt:
            copies += 1
            if direction == "restore":
                ema.restore()
            assert_same(snapshot(model), own)
            assert_same(ema.averaged(), average)
            continue
        state["left"] = None
        break
    assert copies >= 4
    if direction == "apply":
        ema.restore()
    assert_same(snapshot(model), own)
    assert_same(ema.averaged(), average)


def test_by_name_as_in_old_scripts():
    model = network()
    ema = EMA(model, 0.5)
    ema.register()
    wander(model, 2, ema.update)
    own, average = snapshot(model), ema.averaged()
    ema.apply_shadow()
    assert_same(snapshot(model), average)
    ema.restore()
    assert_same(snapshot(model), own)
    ema.register()
    assert ema.num_updates == 0
    assert_same(ema.averaged(), own)


def test_misuse_is_told():
    model = network()
    ema = EMA(model)
    with pytest.raises(RequestError, match="nothing to restore"):
        ema.restore()
    state = ema.state_dict()
    ema.apply_shadow()
    for act in (
        ema.update, ema.apply_shadow, ema.register, ema.refresh,
        lambda: ema.load_state_dict(state), lambda: ema.applied().__enter__(),
    ):  # fmt: skip
        with pytest.raises(RequestError, match="has the averaged weights now"):
            act()
    ema.restore()
    ema.update()


def test_restoring_by_hand_inside_the_block_is_no_mistake():
    model = network()
    ema = EMA(model, 0.5)
    wander(model, 1, ema.update)
    own = snapshot(model)
    with ema.applied():
        ema.restore()
    assert_same(snapshot(model), own)


def test_statistics_recomputed_while_applied_stay_with_the_average():
    for dtype in (torch.float32, torch.bfloat16):
        model = network().to(dtype)
        ema = EMA(model, 0.5, buffers="average")
        wander(model, 1, ema.update)
        own = snapshot(model)
        with ema.applied():
            model[1].running_mean.fill_(7)
        assert_same(snapshot(model), own)
        assert ema.averaged()["1.running_mean"].tolist() == [7] * 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"decay": 1.5}, r"decay 1\.5 is not in"),
        ({"every": 0}, "every is 0"),
        ({"warmup": "slow"}, "no warm-up called 'slow'"),
        ({"warmup": "yolo", "warmup_options": {"tua": 3}}, "has no 'tua'; it has tau"),
        ({"warmup": "yolo", "warmup_options": {"tau": -3}}, "tau is -3"),
        ({"warmup_options": {"tau": 3}}, "without a warmup"),
        ({"buffers": "ignore"}, "buffers is 'ignore'"),
        ({"frozen": "no"}, "frozen is 'no'"),
    ],
)
def test_options_are_checked_at_once(options, said):
    with pytest.raises(RequestError, match=said):
        EMA(nn.Linear(2, 2), **options)


def test_warmup_options_are_used():
    ema = EMA(nn.Linear(2, 2), 0.9, warmup="yolo", warmup_options={"tau": 10.0})
    assert ema.next_decay() == weights.warmup_decay("yolo", 1, 0.9, tau=10.0)


@pytest.mark.parametrize("warmup", weights.WARMUPS)
def test_a_decay_that_ends_at_one_goes_on_with_its_warmup(warmup):
    ema = EMA(nn.Linear(2, 2), lambda t: min(1, t / 2), warmup=warmup)
    for t in range(1, 5):
        decay = ema.next_decay()
        assert decay == weights.warmup_decay(warmup, t - (warmup == "inverse-gamma"), min(1, t / 2))
        assert 0 <= decay < 1
        ema.update()
    assert EMA(nn.Linear(2, 2), 1, warmup=warmup).next_decay() < 1


# ---- Tied, frozen, added.


def test_tied_parameters_are_one_and_stay_tied():
    model = Tied()
    ema = EMA(model, 0.5)
    first = model.embed.weight.detach().clone()
    with torch.no_grad():
        model.embed.weight += 1
    ema.update()
    assert list(ema.state_dict()["averages"]) == ["embed.weight"]
    found = ema.averaged()
    assert list(found) == ["embed.weight", "head.weight", "again.weight"]
    assert found["embed.weight"] is found["head.weight"] is found["again.weight"]
    torch.testing.assert_close(found["head.weight"], first + 0.5)
    own = snapshot(model)
    with ema.applied():
        assert torch.equal(model.head.weight, found["head.weight"])
        assert model.head.weight is model.embed.weight
    assert_same(snapshot(model), own)


def test_parameters_that_share_memory_only_survive_too():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight.data = model[0].weight.data
    ema = EMA(model, 0.5)
    with torch.no_grad():
        model[0].weight += 1
    ema.update()
    own, average = snapshot(model), ema.averaged()
    with ema.applied():
        assert_same(snapshot(model), average)
    assert_same(snapshot(model), own)
    assert_same(ema.averaged(), average)


def test_a_tie_that_is_broken_is_told():
    model = Tied()
    ema = EMA(model, 0.5)
    model.head.weight = nn.Parameter(model.embed.weight.detach().clone())
    with pytest.raises(RequestError, match=r"'head\.weight' and 'embed\.weight' were one"):
        ema.update()
    ema.refresh()
    ema.update()
    assert sorted(ema.state_dict()["averages"]) == ["embed.weight", "head.weight"]


def test_frozen_parameters_cost_nothing_and_show_their_own_value():
    model = network()
    model[0].requires_grad_(False)
    ema = EMA(model, 0.5)
    assert "0.weight" not in ema.state_dict()["averages"]
    assert ema.state_dict()["own"] == ["0.weight", "0.bias"]
    wander(model[4], 1, ema.update)
    assert torch.equal(ema.averaged()["0.weight"], model[0].weight)
    # Unfrozen: from here on it is averaged.
    model[0].requires_grad_(True)
    ema.update()
    start = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight += 1
    ema.update()
    torch.testing.assert_close(ema.averaged()["0.weight"], start + 0.5)
    # Frozen again: it goes on towards the value that stays.
    model[0].requires_grad_(False)
    ema.update()
    torch.testing.assert_close(ema.averaged()["0.weight"], start + 0.75)


def test_frozen_weights_that_change_can_be_averaged_from_the_start():
    model = nn.Linear(2, 2).requires_grad_(False)
    ema = EMA(model, 0.5, frozen="average")
    start = model.weight.clone()
    model.weight += 1
    ema.update()
    torch.testing.assert_close(ema.averaged()["weight"], start + 0.5)


def test_added_and_removed_parameters_are_told_and_refresh_goes_on():
    model = network()
    ema = EMA(model, 0.5)
    wander(model, 1, ema.update)
    held = ema.averaged()["4.weight"]
    model.append(nn.Linear(3, 3))
    del model[0]
    del model[0]
    with pytest.raises(RequestError, match=r"'3\.bias', '3\.weight' came; '0\.bias'.* went"):
        ema.update()
    model = network()
    ema = EMA(model, 0.5)
    wander(model, 1, ema.update)
    held = ema.averaged()["4.weight"]
    model.append(nn.Linear(3, 3))
    ema.refresh()
    found = ema.averaged()
    assert torch.equal(found["4.weight"], held)
    assert torch.equal(found["5.weight"], model[5].weight)
    model[4].register_parameter("extra", nn.Parameter(torch.zeros(1)))
    with pytest.raises(RequestError, match=r"'4\.extra' came"):
        ema.update()


def test_a_parameter_of_another_shape_is_told():
    model = nn.Sequential(nn.Linear(2, 2))
    ema = EMA(model, 0.5)
    model[0].weight = nn.Parameter(torch.zeros(3, 2))
    with pytest.raises(RequestError, match=r"'0\.weight' is \[3, 2\] now; its average is \[2, 2\]"):
        ema.update()
    ema.refresh()
    ema.update()


def test_a_buffer_that_is_replaced_set_or_resized_is_followed():
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(2))
    model.register_buffer("seen", torch.zeros(2))
    model.register_buffer("later", None)
    model.register_buffer("cache", torch.zeros(1), persistent=False)
    ema = EMA(model, 0.5)
    model.seen = model.seen + 3
    model.later = torch.ones(4)
    model.cache = torch.zeros(9)
    ema.update()
    found = ema.averaged()
    assert list(found) == ["weight", "seen", "later"]
    assert torch.equal(found["seen"], torch.full((2,), 3.0))
    model.seen = torch.full((5,), 2.0)
    ema.update()
    assert torch.equal(ema.averaged()["seen"], torch.full((5,), 2.0))


def test_models_without_values_are_refused():
    with pytest.raises(RequestError, match="'weight' has no shape yet"):
        EMA(nn.LazyLinear(3))
    with pytest.raises(RequestError, match="'weight' is on the meta device"):
        EMA(nn.Linear(2, 2, device="meta"))


@pytest.mark.slow
def test_a_compiled_model_has_its_plain_names():
    model = network()
    inner = torch.compile(model[4], backend="eager")
    model[4] = inner
    ema = EMA(torch.compile(model, backend="eager"), 0.5)
    wander(model, 1, ema.update)
    assert list(ema.averaged()) == list(network().state_dict())
    x = batches(1)[0][0]
    plain = network().eval()
    plain.load_state_dict(ema.averaged())
    compiled = torch.compile(model, backend="eager").eval()
    before = compiled(x)
    with ema.applied():
        assert torch.equal(compiled(x), plain(x))
    assert torch.equal(compiled(x), before)


def test_averaged_are_copies_but_what_is_frozen_is_the_models():
    model = network()
    model[0].requires_grad_(False)
    ema = EMA(model, 0.5)
    taken = ema.averaged()
    own = {name: taken.pop(name) for name in ("0.weight", "0.bias")}
    kept = {name: tensor.clone() for name, tensor in taken.items()}
    wander(model[1:], 2, ema.update)
    assert_same(taken, kept)
    assert own["0.weight"].data_ptr() == model[0].weight.data_ptr()
    assert not own["0.weight"].requires_grad


# ---- Resuming.


@pytest.mark.parametrize("buffers", ["copy", "average"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resuming_equals_no_interruption(buffers, dtype):
    options = {"warmup": "tensorflow", "every": 2, "buffers": buffers}
    model = network().to(dtype)
    ema = EMA(model, 0.99, **options)
    wander(model, 3, ema.update)
    state, weights_then = through_a_file(ema.state_dict()), snapshot(model)
    wander(model, 4, ema.update, seed=6)

    other = network(seed=9).to(dtype)
    other.load_state_dict(weights_then)
    resumed = EMA(other, 0.99, device="cpu", **options)
    resumed.load_state_dict(state)
    wander(other, 4, resumed.update, seed=6)
    assert_same(resumed.averaged(), ema.averaged())
    assert resumed.num_updates == ema.num_updates == 3
    assert resumed.next_decay() == ema.next_decay()


def test_a_state_of_a_half_precision_model_loads_into_one_of_float32_and_back():
    model = network().half()
    ema = EMA(model, 0.9)
    wander(model, 2, ema.update)
    other = EMA(network().float(), 0.9)
    other.load_state_dict(through_a_file(ema.state_dict()))
    for name, tensor in ema.averaged().items():
        assert torch.equal(other.averaged()[name].to(tensor.dtype), tensor)
    # float64 averages are not narrowed by a float32 model.
    wide = EMA(network().double(), 0.9)
    other.load_state_dict(wide.state_dict())
    assert other.averaged()["0.weight"].dtype == torch.float64
    other.update()


def test_a_state_with_unfrozen_parameters_loads_into_a_frozen_model():
    model = network()
    ema = EMA(model, 0.5)
    wander(model, 1, ema.update)
    frozen = network(3)
    frozen[0].requires_grad_(False)
    other = EMA(frozen, 0.5)
    other.load_state_dict(ema.state_dict())
    assert_same(other.averaged(), ema.averaged())


def test_a_state_of_another_model_or_schedule_is_refused_and_nothing_changes():
    model = network()
    ema = EMA(model, 0.9)
    before = ema.averaged()
    state = ema.state_dict()
    for change, error, said in (
        ({"version": 7}, RequestError, "version 7"),
        ({"averages": {}}, MismatchError, r"lacks '0\.bias', '0\.weight', '1\.bias'.* 4 more"),
        ({"averages": {**state["averages"], "x": torch.ones(1)}}, MismatchError, "has no 'x'"),
        (
            {"averages": {**state["averages"], "0.bias": torch.ones(9)}},
            MismatchError,
            r"'0\.bias' is \[9\] in it and \[4\] in the model",
        ),
    ):
        with pytest.raises(error, match=said):
            ema.load_state_dict({**state, **change})
    with pytest.raises(RequestError, match="no state dict of EMA: it has no 'averages'"):
        ema.load_state_dict(model.state_dict())
    assert_same(ema.averaged(), before)


# ---- Beside a graph, a part, an optimizer.


def test_a_graph_of_before_is_not_disturbed():
    """Mean teacher: the student's backward comes after the teacher's forward."""
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(3, 4)
    ema = EMA(model, 0.5)
    wander(model, 1, ema.update)
    alone = torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
    student = model(x)
    with ema.applied(), torch.no_grad():
        teacher = model(x)
    assert not torch.equal(student, teacher)
    beside = torch.autograd.grad(student.square().mean(), list(model.parameters()))
    assert all(map(torch.equal, alone, beside))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_no_graph_is_walked_back_through_other_weights(in_place, dtype):
    """Convolutions and norms keep the parameter itself for the backward pass: it would find other
    values there."""
    model = network().to(dtype).eval()
    ema, x = EMA(model, 0.5, in_place=in_place), torch.randn(2, 1, 8, 8, dtype=dtype)
    wander(model, 1, ema.update)

    def grads(loss):
        return torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)

    own = grads(model(x).square().mean())
    before = model(x).square().mean()
    with ema.applied():
        shown = grads(model(x).square().mean())
        inside = model(x).square().mean()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            grads(before)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        grads(inside)
    with ema.applied(), pytest.raises(RuntimeError, match="modified by an inplace operation"):
        grads(inside)
    assert all(map(torch.equal, grads(before), own))
    assert not torch.equal(shown[0], own[0])


@pytest.mark.parametrize("in_place", [False, True])
def test_gradients_accumulate_across_the_block(in_place):
    model, other = network(), network()
    ema = EMA(model, 0.5, in_place=in_place)
    (x, y), (x2, y2) = batches(2)
    for each in (model, other):
        nn.functional.cross_entropy(each(x), y).backward()
        if each is model:
            with ema.applied(), torch.no_grad():
                model.eval()(x2)
            model.train()
        nn.functional.cross_entropy(each(x2), y2).backward()
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)


def test_what_torch_has_computed_from_other_weights_is_not_used():
    """In autocast a copy of each weight is kept, within parametrize.cached() each weight."""
    norm = nn.utils.parametrizations.weight_norm
    model, x = nn.Sequential(norm(nn.Linear(4, 4)), nn.Linear(4, 2)), torch.randn(3, 4)
    ema = EMA(model, 0.5)
    wander(model, 2, ema.update)

    def outputs():
        return model(x).detach()

    for cached in (nn.utils.parametrize.cached, partial(torch.autocast, "cpu", torch.bfloat16)):
        with cached():
            own = outputs()
            with ema.applied():
                shown = outputs()
            again = outputs()
        with ema.applied(), cached():
            expected = outputs()
        assert torch.equal(shown, expected)
        assert torch.equal(own, again)
        assert not torch.equal(shown, own)


def test_a_copy_made_while_applied_has_a_model_of_its_own():
    model = network()
    ema = EMA(model, 0.5)
    wander(model, 2, ema.update)
    own = snapshot(model)
    with ema.applied():
        copies = [copy.deepcopy(ema), pickle.loads(pickle.dumps(ema))]
        (evaluated, averaged) = copy.deepcopy(model), snapshot(model)
    assert_same(snapshot(model), own)
    assert_same(snapshot(evaluated), averaged)
    wander(model, 1)
    for each in copies:
        each.restore()
        assert_same(each.averaged(), ema.averaged())
        before = each.averaged()["0.weight"]
        each.update()
        assert torch.equal(each.averaged()["0.weight"], before.lerp(own["0.weight"], 0.5))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_step_in_the_block_is_told_when_the_model_has_its_own(in_place):
    model = network()
    ema, optimizer = EMA(model, 0.5, in_place=in_place), sgd(model)
    wander(model, 1, ema.update)
    model(batches(1)[0][0]).sum().backward()
    own = snapshot(model)
    said = r"'0\.bias', '0\.weight'.* changed while"
    with pytest.raises(RequestError, match=said), ema.applied():
        optimizer.step()
    found = snapshot(model)
    assert all(torch.equal(found[name], own[name]) for name, _ in model.named_parameters())


def test_an_average_of_a_part_knows_that_of_the_whole():
    model = network()
    whole, part = EMA(model, 0.5), EMA(model[4], 0.5)
    other = EMA(network(), 0.5)
    with whole.applied():
        with pytest.raises(RequestError, match="Another average is in the model"):
            part.update()
        other.update()
    with part.applied():
        with pytest.raises(RequestError, match="Another average is in the model"):
            whole.update()
        with whole.applied(), pytest.raises(RequestError, match="applied after this one"):
            part.restore()
    whole.update()


def test_the_state_may_be_taken_while_applied():
    model = network()
    ema = EMA(model, 0.5)
    wander(model, 2, ema.update)
    before = {name: t.clone() for name, t in ema.state_dict()["averages"].items()}
    with ema.applied():
        assert_same(through_a_file(ema.state_dict())["averages"], before)


# ---- Schedules.


def test_a_decay_may_be_a_function_or_one():
    model = nn.Linear(2, 2)
    ema, by_hand = EMA(model, lambda t: min(1.0, 0.8 + t / 10)), EMA(model, 0.9)
    asked = []

    def after():
        asked.append(ema.next_decay())
        ema.update()
        by_hand.decay = min(1.0, 0.8 + by_hand.num_updates / 10 + 0.1)
        by_hand.update()

    wander(model, 3, after)
    assert asked == pytest.approx([0.9, 1.0, 1.0])
    assert_same(ema.averaged(), by_hand.averaged())
    with pytest.raises(RequestError, match=r"decay 2 is not in"):
        EMA(model, lambda t: 2)
    expected = ema.averaged()
    ema.decay = 90
    with pytest.raises(RequestError, match=r"decay 90 is not in"):
        ema.update()
    assert_same(ema.averaged(), expected)


def test_a_state_of_numpy_numbers_is_one_of_plain_ones():
    options = {"warmup": "yolo", "warmup_options": {"tau": np.float64(9)}, "every": np.int64(2)}
    ema = EMA(nn.Linear(2, 2), np.float64(0.9), **options)
    ema.update()
    other = EMA(nn.Linear(2, 2), 0.9, **options)
    other.load_state_dict(through_a_file(ema.state_dict()))
    assert other.next_decay() == ema.next_decay()
    assert_same(other.averaged(), ema.averaged())


def test_a_state_of_another_decay_goes_on_with_this_one():
    model = network()
    ema, other = EMA(model, 0.9, every=2), EMA(model, 0.5)
    wander(model, 4, ema.update)
    with pytest.warns(UserWarning, match=r"made with (decay 0\.9; it goes on with 0\.5|every)"):
        other.load_state_dict(ema.state_dict())
    assert_same(other.averaged(), ema.averaged())
    assert other.next_decay() == 0.5


def test_steps_that_pass_over_a_multiple_count():
    ema = EMA(nn.Linear(2, 2), every=10)
    for step in range(4, 41, 4):
        ema.update(step)
    assert ema.num_updates == 4


# ---- What is no weight.


def test_what_is_equal_stays_whatever_it_is():
    model = network()
    model.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
    model.register_buffer("scale", torch.ones(2))
    ema = EMA(model, 0.5, buffers="average")
    wander(model, 2, ema.update)
    model.scale += 1
    ema.update()
    assert torch.equal(ema.averaged()["mask"], model.mask)
    assert ema.averaged()["scale"].tolist() == [1.5, 1.5]


def test_what_starts_without_a_number_is_averaged_from_its_first():
    """The observers of quantization-aware training start with a range from inf to -inf."""
    model = network()
    model.register_buffer("min_val", torch.tensor(float("inf")))
    ema = EMA(model, 0.5, buffers="average")
    ema.update()
    for value, expected in [(-2.0, -2.0), (-4.0, -3.0), (float("-inf"), float("-inf")), (1.0, 1.0)]:
        model.min_val.fill_(value)
        ema.update()
        assert ema.averaged()["min_val"] == expected


def test_buffers_that_are_no_statistics_stay_the_models():
    model = network()
    model.register_buffer("best", torch.tensor(float("inf")))
    ema = EMA(model, 0.5)
    with ema.applied():
        model.best.fill_(0.25)
    assert model.best == ema.averaged()["best"] == 0.25


@pytest.mark.parametrize("buffers", ["copy", "average"])
@pytest.mark.parametrize(
    "norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm], ids=["old", "new"]
)
def test_vectors_of_spectral_norm_are_left_to_the_model(buffers, norm):
    model = norm(nn.Linear(4, 4))
    ema = EMA(model, 0.5, buffers=buffers)
    for _ in range(3):
        model(torch.randn(2, 4))
    vectors = {name: value.clone() for name, value in model.named_buffers()}
    assert vectors
    ema.update()
    averaged = ema.averaged()
    assert all(torch.equal(averaged[name], vector) for name, vector in vectors.items())


def test_parameters_that_zero_3_has_spread_are_refused():
    model = nn.Linear(4, 4)
    for parameter in model.parameters():
        parameter.ds_id, parameter.data = 0, torch.empty(0)
    with pytest.raises(RequestError, match="ZeRO-3 has spread it"):
        EMA(model)


def test_extra_state_comes_along():
    class Net(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            self.found = state

    model, other = Net(2, 2), Net(2, 2)
    other.load_state_dict(EMA(model).averaged())
    assert other.found == {"a": 1}


def test_a_notebook_shows_settings_and_no_tensor():
    model = torch.nn.Linear(3, 2)
    optimizer = SWA(torch.optim.SGD(model.parameters(), lr=0.1), start=4, model=model)
    for average, facts in (
        (EMA(model, decay=0.9), ["EMA", "decay</th><td>0.9", "num_updates</th><td>0"]),
        (PowerEMA(model), ["PowerEMA", "sigma_rel</th><td>0.05, 0.1"]),
        (optimizer, ["SWA", "optimizer</th><td>SGD", "start</th><td>4"]),
    ):
        shown = average._repr_html_()
        assert all(fact in shown for fact in facts)
        assert len(shown) < 500
        assert "\n" not in repr(average)
