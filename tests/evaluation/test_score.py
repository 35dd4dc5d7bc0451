"""The score of a model with the weights of one checkpoint, against torch's own."""

from functools import partial

import pytest
import torch
from checkpoints import save
from torch import nn
from torch.nn import functional

from swavg.errors import MismatchError
from swavg.evaluation.evaluate import evaluate
from swavg.evaluation.score import score_checkpoint, scoring
from swavg.evaluation.survey import Point
from swavg.formats import open_checkpoint


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 5))


def data(seed=1, count=12):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, generator=generator) + seed
    return [(inputs, torch.randint(5, (count,), generator=generator))]


def expected(net, bn_data=None):
    if bn_data is not None:
        torch.optim.swa_utils.update_bn(bn_data, net)
    ((inputs, target),) = data()
    net.eval()
    with torch.no_grad():
        return functional.cross_entropy(net(inputs), target).item()


def opened(path, net):
    return open_checkpoint(save(path, net.state_dict()))


@pytest.mark.parametrize("bn_data", [None, data(seed=3)])
def test_the_score_is_that_of_the_loaded_state_dict(tmp_path, bn_data):
    model = network()
    for seed in (5, 6):
        checkpoint = opened(tmp_path / f"{seed}.safetensors", network(seed))
        found = score_checkpoint(model, checkpoint, partial(evaluate, model, data(), None, bn_data))
        assert found.loss == pytest.approx(expected(network(seed), bn_data), rel=1e-6)


def test_a_prefix_of_the_checkpoint_does_not_count(tmp_path):
    state = {f"model.{name}": value for name, value in network(5).state_dict().items()}
    checkpoint = open_checkpoint(save(tmp_path / "a.safetensors", state))
    model = network()
    found = score_checkpoint(model, checkpoint, partial(evaluate, model, data()), ["model."])
    assert found.loss == pytest.approx(expected(network(5)), rel=1e-6)


def test_sums_and_checkpoints_by_themselves_are_scored_in_turn(tmp_path):
    paths = [opened(tmp_path / f"{seed}.safetensors", network(seed)) for seed in (5, 6)]
    model = network()
    with scoring(model, partial(evaluate, model, data()), paths, paths) as score:
        both = [score(Point((), own=1)), score(Point((), (0.0, 1.0))), score(Point((), own=1))]
    assert [each.loss for each in both] == pytest.approx([expected(network(6))] * 3, rel=1e-6)


def test_what_does_not_fit_is_refused_before_anything_is_scored(tmp_path):
    wide = nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(7), nn.Linear(7, 5))
    others = [opened(tmp_path / "a.safetensors", network(5)), opened(tmp_path / "b.pt.st", wide)]
    model, scored = network(), []
    with (
        pytest.raises(MismatchError, match=r"b\.pt\.st"),
        scoring(model, lambda: scored.append(1), (), others),
    ):
        scored.append(2)
    assert scored == []
