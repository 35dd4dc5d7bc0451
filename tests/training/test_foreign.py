"""Averages of other libraries, taken over."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training_models import Tied, assert_same, network, wander

from swavg.errors import MismatchError, RequestError
from swavg.training import EMA


def moved(model):
    """torch's EMA of a model, some updates old."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    wander(model, 3, lambda: average.update_parameters(model))
    return average


# What timm, ema-pytorch and torch_ema keep, as their sources say.
STATES = {
    "torch": lambda average: average.state_dict(),
    "timm": lambda average: {f"module.{k}": v for k, v in average.module.state_dict().items()},
    "ema-pytorch": lambda average: {
        **{f"ema_model.{k}": v for k, v in average.module.state_dict().items()},
        **{f"online_model.{k}": v + 1 for k, v in average.module.state_dict().items()},
        "step": torch.tensor(3),
        "initted": torch.tensor(True),
    },
    "torch_ema": lambda average: {
        "decay": 0.5,
        "num_updates": 3,
        "shadow_params": list(average.module.parameters()),
        "collected_params": None,
    },
    "a model": lambda average: average.module.state_dict(),
}


@pytest.mark.parametrize("kind", STATES)
def test_it_goes_on_as_torchs_would(kind):
    model = network()
    average = moved(model)
    ema = EMA.from_averages(model, STATES[kind](average), 0.5)
    assert ema.num_updates == {"timm": 0, "a model": 0}.get(kind, 3)
    wander(model, 2, lambda: (ema.update(), average.update_parameters(model)))
    expected = average.module.state_dict()
    for name, _ in model.named_parameters():
        assert torch.equal(ema.averaged()[name], expected[name]), name


def test_tied_compiled_and_frozen_models():
    model = Tied()
    average = moved(model)
    ema = EMA.from_averages(torch.compile(model, backend="eager"), average.state_dict(), 0.5)
    assert_same(ema.averaged(), average.module.state_dict())
    model = network()
    model[0].requires_grad_(False)
    trained = [torch.ones_like(p) for p in model.parameters() if p.requires_grad]
    ema = EMA.from_averages(model, {"shadow_params": trained, "num_updates": 4})
    assert torch.equal(ema.averaged()["4.bias"], torch.ones_like(model[4].bias))
    assert torch.equal(ema.averaged()["0.bias"], model[0].bias)


@pytest.mark.parametrize(
    "options", [{"warmup": "tensorflow"}, {"warmup": "yolo"}, {"decay": lambda t: 1 - 1 / t}]
)
def test_a_schedule_goes_on_where_the_averages_were_and_never_forgets_them(options):
    model = network()
    average = moved(model)
    for kind in ("timm", "a model"):
        with pytest.raises(RequestError, match="how many updates made them") as caught:
            EMA.from_averages(model, STATES[kind](average), **options)
        assert "num_updates=..." in caught.value.hint
    ema = EMA.from_averages(model, STATES["timm"](average), num_updates=5000, **options)
    known = {"shadow_params": list(average.module.parameters()), "optimization_step": 5000}
    assert ema.num_updates == EMA.from_averages(model, known, **options).num_updates == 5000
    assert ema.next_decay() > 0.9
    with pytest.raises(RequestError, match="how many updates made them"):
        EMA.from_averages(model, {**known, "optimization_step": None}, **options)
    with pytest.raises(RequestError, match="num_updates is -1"):
        EMA.from_averages(model, known, num_updates=-1)


def test_another_decay_is_told():
    state = STATES["torch_ema"](moved(network()))
    with pytest.warns(match=r"made with decay 0\.5; it goes on with 0\.999"):
        EMA.from_averages(network(), state)


def test_what_is_no_state_dict_of_averages_is_told_where_they_are():
    average = moved(network())
    with pytest.raises(RequestError, match=r"not from AveragedModel\. Give its state_dict\(\)"):
        EMA.from_averages(network(), average)
    checkpoint = {"state_dict": {}, "state_dict_ema": average.state_dict(), "epoch": 3}
    with pytest.raises(RequestError, match=r"It may be state\['state_dict_ema'\]\."):
        EMA.from_averages(network(), checkpoint)


class Inner(nn.Module):
    """A model whose child's names are its own under a prefix."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(2, 2).requires_grad_(False)
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.bias = nn.Parameter(torch.ones(2))


@pytest.mark.parametrize("wrapped", ["", "module.", "module.module.", "module._orig_mod.module."])
@pytest.mark.parametrize("build", [network, Inner])
def test_names_are_found_in_any_wrappers(build, wrapped):
    model = build()
    averages = {name: value + 1 for name, value in model.state_dict().items()}
    state = {f"{wrapped}{name}": value for name, value in averages.items()}
    ema = EMA.from_averages(model, {**state, "n_averaged": torch.tensor(2)})
    assert ema.num_updates == 2
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(ema.averaged()[name], averages[name]), name


def test_a_state_of_torch_ema_need_not_count():
    shadow = [torch.full_like(p, 5) for p in network().parameters()]
    state = {"decay": 0.9, "num_updates": None, "shadow_params": shadow}
    ema = EMA.from_averages(network(), state, 0.9)
    assert ema.num_updates == 0
    assert torch.equal(ema.averaged()["4.bias"], torch.full((3,), 5.0))


def test_averages_of_another_model_are_refused():
    with pytest.raises(RequestError, match="holds no averages of the model: its names are 'x'"):
        EMA.from_averages(network(), {"x": torch.ones(1)})
    with pytest.raises(RequestError, match="2 averages, which are not those"):
        EMA.from_averages(network(), {"shadow_params": [torch.ones(1), torch.ones(2)]})
    state = network().state_dict()
    del state["4.bias"]
    with pytest.raises(MismatchError, match=r"it lacks '4\.bias'"):
        EMA.from_averages(network(), state)
    with pytest.raises(MismatchError, match=r"\[9\] in it and \[3\]"):
        EMA.from_averages(network(), network().state_dict() | {"4.bias": torch.ones(9)})
