"""Models that change while, or between, their averages are kept."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from training_models import assert_same, batches, network, sgd, snapshot, train, wander

from swavg.errors import RequestError
from swavg.training import EMA, SWA, PowerEMA, SWASchedule, save_snapshot, update_bn
from swavg.training.rules import Rules


def followed(model):
    """An EMA of ``model``, some steps old, and what it should show."""
    ema = EMA(model, decay=0.5)
    wander(model, 3, ema.update)
    return ema, ema.averaged()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_model_converted_while_applied_gets_its_own_values_back_converted(dtype):
    model = network()
    ema, _ = followed(model)
    own = snapshot(model)
    with ema.applied():
        model.to(dtype)
    assert_same(snapshot(model), {k: v.to(dtype) if v.is_floating_point() else v
                                  for k, v in own.items()})  # fmt: skip
    ema.update()


def test_parameters_assigned_while_applied_get_the_own_values_back():
    model = network()
    ema, expected = followed(model)
    own = snapshot(model)
    strangers = {name: torch.zeros_like(value) for name, value in own.items()}
    with pytest.raises(RequestError, match="changed while the model had"), ema.applied():
        model.load_state_dict(strangers, assign=True)
    found = snapshot(model)
    for name, _ in model.named_parameters():
        assert torch.equal(found[name], own[name]), name
    averaged = ema.averaged()
    for name, _ in model.named_parameters():
        assert torch.equal(averaged[name], expected[name]), name


def test_a_buffer_replaced_while_applied_stays_with_the_average():
    model = network()
    ema, _ = followed(model)
    own = model[1].running_mean.clone()
    with ema.applied():
        model[1].running_mean = torch.full_like(own, 3)
    assert torch.equal(model[1].running_mean, own)
    assert torch.equal(ema.averaged()["1.running_mean"], torch.full_like(own, 3))


def test_an_average_follows_a_model_that_becomes_wider():
    model = network().bfloat16()
    ema = EMA(model, decay=0.5)
    ema.update()
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-12
    ema.update()
    averaged = ema.averaged()
    weight = model.state_dict()["4.weight"]
    assert averaged["4.weight"].dtype == torch.float64
    assert torch.equal(averaged["4.weight"], torch.lerp(weight.bfloat16().double(), weight, 0.5))


def test_a_model_moved_to_meta_is_told_and_the_average_is_kept():
    model = network()
    ema, expected = followed(model)
    kept = copy.deepcopy(ema.state_dict())
    model.to("meta")
    with pytest.raises(RequestError, match="on the meta device"):
        ema.update()
    model.to_empty(device="cpu")
    ema.load_state_dict(kept)
    averaged = ema.averaged()
    for name, _ in model.named_parameters():
        assert torch.equal(averaged[name], expected[name]), name


def test_an_expanded_buffer_is_left_alone():
    model = network()
    model.register_buffer("ones", torch.ones(1).expand(7))
    ema = EMA(model, decay=0.5)
    wander(model, 2, ema.update)
    with ema.applied():
        assert torch.equal(model.ones, torch.ones(7))
    assert model.ones.stride() == (0,)
    assert torch.equal(ema.averaged()["ones"], torch.ones(7))


@pytest.mark.parametrize("shape", [(7,), (1,)])
def test_a_buffer_that_becomes_an_expanded_one_is_the_models_own(shape):
    model = network()
    model.register_buffer("ones", torch.zeros(shape))
    ema = EMA(model, decay=0.5, buffers="average")
    ema.update()
    model.ones = torch.ones(1).expand(3)
    wander(model, 2, ema.update)
    with ema.applied():
        assert torch.equal(model.ones, torch.ones(3))
    assert torch.equal(ema.averaged()["ones"], torch.ones(3))


def test_an_ema_made_in_inference_mode_can_be_updated_outside():
    model = network()
    with torch.inference_mode():
        ema = EMA(model, decay=0.5)
    wander(model, 2, ema.update)
    other = network()
    reference = EMA(other, decay=0.5)
    wander(other, 2, reference.update)
    assert_same(ema.averaged(), reference.averaged())


def test_a_bias_that_comes_later_is_told():
    model = nn.Sequential(nn.Linear(2, 3, bias=False))
    ema = EMA(model)
    model[0].bias = nn.Parameter(torch.zeros(3))
    with pytest.raises(RequestError, match=r"refresh\(\)"):
        ema.update()
    ema.refresh()
    ema.update()
    assert "0.bias" in ema.averaged()


def test_power_emas_are_refreshed_all_or_none():
    model = nn.Sequential(nn.Linear(2, 3, bias=False))
    power = PowerEMA(model)
    power.update()
    with power.applied(1), pytest.raises(RequestError, match="has the averaged weights now"):
        power.refresh()
    model.append(nn.Linear(3, 1))
    with pytest.raises(RequestError, match=r"refresh\(\)"):
        power.update()
    power.refresh()
    power.update()
    assert {"1.weight", "1.bias"} <= power.averaged(0).keys()


@pytest.mark.parametrize(
    "wrong", [lambda model: model.parameters(), lambda model: model.state_dict()]
)
@pytest.mark.parametrize("kind", [EMA, PowerEMA, lambda model: SWA(sgd(network()), model=model)])
def test_what_is_no_model_is_refused_at_once(kind, wrong):
    with pytest.raises(RequestError, match="is no model"):
        kind(wrong(network()))


def test_a_step_that_is_no_number_is_refused_with_a_hint():
    model = network()
    ema = EMA(model)
    with pytest.raises(RequestError, match="is a Sequential, not a whole number") as caught:
        ema.update(model)
    assert "ema.update()" in caught.value.hint
    with pytest.raises(RequestError, match="is a float"):
        ema.update(1.5)
    ema.update(torch.tensor(3))
    assert ema.step == 3


def test_a_closure_for_an_swa_of_a_model_is_refused():
    swa = SWA(network(), start=0)
    with pytest.raises(RequestError, match="A closure is for the optimizer"):
        swa.step(lambda: 0)


@pytest.mark.parametrize("count", [1.5, -1])
def test_counts_are_whole_and_not_negative(count):
    with pytest.raises(RequestError, match="start is"):
        SWA(network(), start=count)


def test_parameters_replaced_in_an_optimizer_are_averaged_from_then_on():
    """Fully-sharded wrappers, and quantisation, give the optimizer other tensors."""
    model = network()
    inner = sgd(model)
    swa = SWA(inner, start=0)
    train(model, swa, batches(2))
    fresh = nn.Parameter(inner.param_groups[0]["params"][0].detach() + 1)
    inner.param_groups[0]["params"][0] = fresh
    before = fresh.detach().clone()
    swa.swap()
    assert not torch.equal(fresh, before)
    swa.swap()
    assert torch.equal(fresh, before)


def test_rates_given_one_by_one_and_together_are_the_same_settings():
    model = network()
    groups = [{"params": [p]} for p in model.parameters()]
    one = SWASchedule(torch.optim.SGD(groups, lr=0.1), lr=0.05)
    all_ = SWASchedule(torch.optim.SGD(groups, lr=0.1), lr=[0.05] * len(groups))
    other = SWASchedule(torch.optim.SGD(groups, lr=0.1), lr=[0.05] * (len(groups) - 1) + [0.01])
    assert one.settings() == all_.settings() != other.settings()


class Renamed(nn.Module):
    """A module that saves its weight in its own way, as another tensor."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        self.register_state_dict_post_hook(self.saved)

    @staticmethod
    def saved(module, state, prefix, metadata):
        state[f"{prefix}weight"] = module.weight.detach().clone()


def test_a_module_that_saves_copies_shows_its_average_all_the_same():
    model = nn.Sequential(Renamed())
    ema = EMA(model, decay=0.5)
    first = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight += 1
    ema.update()
    assert torch.equal(ema.averaged()["0.weight"], torch.lerp(first, first + 1, 0.5))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda m: SWA(sgd(m), start=1, every=None), "every is None; it must be a whole number"),
        (lambda m: SWA(sgd(m), start=True), "start is True"),
        (lambda m: SWA(sgd(m), start=1, lr="0.1"), "lr is '0.1'"),
        (lambda m: SWA(sgd(m), start=1, every=2, lr=0.1, lr_low=0.2), "lr_low is above lr"),
        (lambda m: SWA(m, start=1, buffers="nonsense"), "buffers"),
        (lambda m: EMA(m, "x"), "The decay 'x'"),
        (lambda m: EMA(m, None), "The decay None"),
        (lambda m: EMA(m, 99), r"The decay 99 is not in \[0, 1\]"),
        (lambda m: EMA(m, sgd(m)), "The decay SGD is not in"),
        (lambda m: SWA(m, sgd(m)), r"start is SGD; .* Pass optimizer=\.\.\."),
        (lambda m: SWA(sgd(m), m), r"start is Sequential; .* or model=\.\.\."),
        (lambda m: save_snapshot(m, "a.safetensors"), r"It is save_snapshot\(path, model\)"),
        (lambda m: update_bn(SWA(m), []), r"A SWA is no model.* swa\.update_bn\(batches\)"),
        (lambda m: SWA(sgd(m)).load_state_dict(sgd(m).state_dict()), "before it is wrapped"),
        (lambda m: EMA(m).load_state_dict({"ema": EMA(m).state_dict()}), r"state\['ema'\]"),
        (lambda m: EMA(m).load_state_dict(m.state_dict()), r"EMA\.from_averages\(model, state\)"),
    ],
)
def test_arguments_of_a_wrong_kind_are_refused_at_once(made, said):
    with pytest.raises(RequestError, match=said):
        made(network())


def test_one_width_needs_no_tuple():
    assert PowerEMA(network(), sigma_rel=0.1).sigma_rel == (0.1,)


def test_a_state_replaces_one_average_after_the_other(monkeypatch):
    ema, other = EMA(network()), EMA(network(3))
    before = [weakref.ref(average) for average in ema.averages_state()["averages"].values()]
    ema.update()
    alive, copied = [], Rules.copy

    def counted(*arguments):
        alive.append(sum(average() is not None for average in before))
        return copied(*arguments)

    monkeypatch.setattr(Rules, "copy", counted)
    ema.load_state_dict(other.state_dict())
    assert alive == [*range(len(before), 0, -1)]
    assert_same(ema.averaged(), other.averaged())


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_an_embedding_that_renormalizes_leaves_its_average_as_it_is(kind, in_place):
    model = nn.Sequential(kind(4, 3, max_norm=1.0), nn.Linear(3, 2))
    ema = EMA(model, decay=0.5, in_place=in_place)
    wander(model, 3, ema.update)
    own, expected = snapshot(model), ema.averaged()
    plain = copy.deepcopy(model)
    plain.load_state_dict(expected)
    tokens = torch.tensor([[0, 1, 3]])
    with ema.applied(), torch.no_grad():
        assert torch.equal(model(tokens), plain(tokens))
        assert not torch.equal(model[0].weight, expected["0.weight"])
    assert_same(snapshot(model), own)
    assert_same(ema.averaged(), expected)
    stranger = nn.Parameter(torch.zeros(4, 3))
    with pytest.raises(RequestError, match=r"'0\.weight' changed while"), ema.applied():
        model[0].weight = stranger
    assert_same(ema.averaged(), expected)


# ---- Two averages of one model.


def test_averages_are_restored_last_in_first_out():
    model = network()
    one, two = EMA(model, decay=0.5), EMA(model, decay=0.9)
    wander(model, 3, lambda: (one.update(), two.update()))
    own, first, second = snapshot(model), one.averaged(), two.averaged()
    one.apply_shadow()
    two.apply_shadow()
    with pytest.raises(RequestError, match="Another average was applied after this one"):
        one.restore()
    two.restore()
    one.restore()
    assert_same(snapshot(model), own)
    assert_same(one.averaged(), first)
    assert_same(two.averaged(), second)


def block_of(ema):
    """A block that has begun, and that ``close()`` ends by an exception."""

    def shown():
        with ema.applied():
            yield

    block = shown()
    next(block)
    return block


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_place", [(False, False), (True, False), (False, True), (True, True)])
def test_an_exception_may_end_the_earlier_of_several(in_place, dtype):
    model = network().to(dtype)
    one = EMA(model, decay=0.5, in_place=in_place[0])
    two = EMA(model, decay=0.9, in_place=in_place[1])
    part = EMA(model[0], decay=0.8)
    wander(model, 3, lambda: (one.update(), two.update(), part.update()))
    own, first, second, third = snapshot(model), one.averaged(), two.averaged(), part.averaged()
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    block = block_of(one)
    two.apply_shadow()
    part.apply_shadow()
    model[1].running_mean.fill_(7)
    block.close()
    assert two.is_applied
    assert part.is_applied
    assert not one.is_applied
    part.restore()
    assert_same(snapshot(model), two.averaged("model"))
    two.restore()
    assert_same(snapshot(model), own)
    assert [parameter.data_ptr() for parameter in model.parameters()] == addresses
    second["1.running_mean"].fill_(7)
    for ema, expected in ((one, first), (two, second), (part, third)):
        assert_same(ema.averaged(), expected)


def test_a_step_is_told_also_when_the_earlier_of_two_has_ended():
    model = network()
    own = snapshot(model)
    one, two = EMA(model, decay=0.5), EMA(model, decay=0.9)
    for before in (True, False):
        block = block_of(one)
        two.apply_shadow()
        with torch.no_grad():
            if before:
                model[4].bias.add_(1)
            block.close()
            if not before:
                model[4].bias.add_(1)
        with pytest.raises(RequestError, match="changed while the model had"):
            two.restore()
        assert_same(snapshot(model), own)


@pytest.mark.parametrize("wrapped", [False, True])
def test_nothing_is_updated_with_anothers_values(wrapped):
    model = network()
    ema = EMA(torch.nn.DataParallel(model) if wrapped else model, decay=0.5)
    power, swa = PowerEMA(model), SWA(model, start=0)
    wander(model, 2, lambda: (ema.update(), power.update()))
    expected = power.averaged()
    with ema.applied():
        for act in (power.update, swa.update, swa.step):
            with pytest.raises(RequestError, match="Another average is in the model now"):
                act()
    assert_same(power.averaged(), expected)
    swa.update()
    with swa.swapped(), pytest.raises(RequestError, match="Another average is in the model now"):
        ema.update()
    ema.update()


def test_a_copy_made_while_applied_is_a_model_of_its_own():
    model = network()
    ema, _ = followed(model)
    with ema.applied():
        other = copy.deepcopy(model)
        EMA(other).update()
    ema.update()


@pytest.mark.slow
def test_an_average_that_is_let_go_holds_nothing():
    model = network()
    ema, _ = followed(model)
    ema.apply_shadow()
    gone = weakref.ref(model)
    del ema, model
    gc.collect()
    assert gone() is None


def test_a_scripted_model_is_refused():
    with pytest.warns(DeprecationWarning, match="jit"):
        scripted = torch.jit.script(nn.Linear(2, 1))
    with pytest.raises(RequestError, match="TorchScript"):
        EMA(scripted)


def test_an_swa_without_anything_or_of_a_stranger_is_refused():
    with pytest.raises(RequestError, match="NoneType is no model"):
        SWA(None, 1)
    with pytest.raises(RequestError, match="has none of the model's parameters"):
        SWA(sgd(network()), 1, model=network())


def test_torchs_order_of_arguments_is_told():
    from swavg.training import apply_swa

    with pytest.raises(RequestError, match="is no model") as caught:
        update_bn(batches(1), network())
    assert "update_bn(model, batches)" in caught.value.hint
    with pytest.raises(RequestError, match="is no model"):
        apply_swa(network().state_dict(), ["a.pt"])
    with pytest.raises(RequestError, match="The checkpoints are one path"):
        apply_swa(network(), "a.pt")


@pytest.mark.parametrize("look", [lambda ema: ema.averaged(), lambda ema: ema.state_dict()])
def test_a_look_at_the_averages_hides_no_change_from_the_next_update(look):
    """What unfreezes or converts a model may come right before a checkpoint."""
    model = network()
    model[0].requires_grad_(False)
    ema = EMA(model, decay=0.5)
    ema.update()
    model[0].requires_grad_(True)
    look(ema)
    ema.update()
    assert "0.weight" in ema.state_dict()["averages"]
    model.double()
    look(ema)
    with torch.no_grad():
        model[0].weight += 1e-12
    ema.update()
    found = ema.averaged()["0.weight"]
    assert found.dtype == torch.float64
    assert torch.equal(found, torch.lerp(model[0].weight - 1e-12, model[0].weight, 0.5))


def test_an_update_after_an_apply_that_failed_moves_the_averages_that_there_are(monkeypatch):
    model = network()
    ema = EMA(model, decay=0.5)
    ema.update()
    model.double()
    weight = model[4].weight
    with monkeypatch.context() as patched:
        patched.setattr("torch.clear_autocast_cache", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ema.apply_shadow()
    with torch.no_grad():
        weight += 1
    ema.update()
    assert ema.averaged()["4.weight"].dtype == torch.float64
    torch.testing.assert_close(ema.averaged()["4.weight"], weight - 0.5)
