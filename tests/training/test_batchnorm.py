"""Batch-norm statistics: torch's bits, the rest of the network left alone, errors undone."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn as torch_update_bn
from training_models import assert_same, batches, network, one_thread, snapshot

from swavg.errors import RequestError
from swavg.training.batchnorm import update_bn


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def modes(model):
    return [(module.training, getattr(module, "momentum", None)) for module in model.modules()]


def images(model, batch):
    return model(batch[0])


@pytest.mark.parametrize("training", [True, False])
def test_it_is_torchs_update_bn_bit_for_bit(training):
    model = network().train(training)
    model(batches(1)[0][0])
    oracle = copy.deepcopy(model)
    data = batches(5)
    before = modes(model)
    changed = update_bn(model, data)
    torch_update_bn(data, oracle)
    assert_same(snapshot(model), snapshot(oracle))
    assert changed == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert model[1].num_batches_tracked == 5
    assert modes(model) == before


def test_tensors_tuples_mappings_and_a_forward_of_ones_own_give_the_same():
    data = batches(3)
    expected = network()
    update_bn(expected, data)

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, pixels):
            return self.net(pixels)

    for model, given, options in (
        (network(), [x for x, _ in data], {}),
        (network(), [(x,) for x, _ in data], {}),
        (network(), data, {"forward": images}),
        (network(), data, {"device": "cpu"}),
        (Named(), [{"pixels": x, "labels": y} for x, y in data], {}),
    ):
        update_bn(model, iter(given), **options)
        assert_same(
            {name.removeprefix("net."): value for name, value in snapshot(model).items()},
            snapshot(expected),
        )


def test_dropout_is_off_and_modes_come_back_one_by_one():
    model = nn.Sequential(nn.Dropout(0.5), network(), nn.Dropout(0.5))
    model.train()
    model[2].eval()
    model[1][1].momentum = 0.3
    before = modes(model)
    plain = network()
    update_bn(model, batches(3))
    update_bn(plain, batches(3))
    assert_same(
        {name.removeprefix("1."): value for name, value in snapshot(model).items()},
        snapshot(plain),
    )
    assert modes(model) == before


@pytest.mark.parametrize("fault", ["data", "model", "none", "interrupt"])
def test_after_an_error_all_is_as_it_was(fault):
    model = network()
    model(batches(1)[0][0])
    before, how = snapshot(model), modes(model)
    data = batches(3)

    def failing():
        yield from data[:2]
        raise KeyboardInterrupt if fault == "interrupt" else ZeroDivisionError

    given, error = {
        "data": (failing(), ZeroDivisionError),
        "interrupt": (failing(), KeyboardInterrupt),
        "model": ([*data, torch.zeros(2, 5, 1, 1)], RuntimeError),
        "none": ([], RequestError),
    }[fault]
    with pytest.raises(error):
        update_bn(model, given)
    assert_same(snapshot(model), before)
    assert modes(model) == how
    assert not model[1]._forward_pre_hooks
    assert not model[1]._forward_hooks


def test_layers_that_nothing_comes_by_keep_their_statistics():
    model = nn.ModuleDict({"used": nn.BatchNorm1d(2), "spare": nn.BatchNorm1d(2)})
    with torch.no_grad():
        model["spare"].running_mean.fill_(3)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    changed = update_bn(model, [x], forward=lambda model, batch: model["used"](batch))
    assert changed == ["used.running_mean", "used.running_var", "used.num_batches_tracked"]
    assert model["spare"].running_mean.tolist() == [3, 3]


def test_half_precision_statistics_do_not_stall():
    x = torch.randn(400, 8, 3, generator=torch.Generator().manual_seed(0)) + 5
    model = nn.BatchNorm1d(3).to(torch.bfloat16)
    exact = nn.BatchNorm1d(3)
    data = list(x.to(torch.bfloat16))
    update_bn(model, data)
    update_bn(exact, [batch.float() for batch in data])
    # Correctly rounded but for the rounding of each batch's mean, which averages out.
    torch.testing.assert_close(model.running_mean.float(), exact.running_mean, rtol=2**-8, atol=0)
    torch.testing.assert_close(model.running_var.float(), exact.running_var, rtol=2**-7, atol=0)
    assert model.num_batches_tracked == 400


def test_instance_norm_with_statistics_counts_too():
    model = nn.InstanceNorm1d(3, track_running_stats=True)
    data = list(torch.randn(5, 4, 3, 7, generator=torch.Generator().manual_seed(0)))
    assert update_bn(model, data) == ["running_mean", "running_var"]
    means = torch.stack([batch.mean(2).mean(0) for batch in data]).mean(0)
    variances = torch.stack([batch.var(2).mean(0) for batch in data]).mean(0)
    torch.testing.assert_close(model.running_mean, means)
    torch.testing.assert_close(model.running_var, variances)
    assert model.momentum == 0.1


def test_a_shared_layer_counts_each_use_and_has_one_name():
    shared = nn.BatchNorm1d(2)
    model = nn.Sequential(shared, shared)
    assert len(update_bn(model, [torch.randn(4, 2)] * 3)) == 3
    assert shared.num_batches_tracked == 6


def test_a_layer_called_by_keyword_counts():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x):
            return self.norm(input=x)

    model = Keyword()
    x = torch.randn(4, 2)
    update_bn(model, [x])
    torch.testing.assert_close(model.norm.running_mean, x.mean(0))


def test_without_batch_norm_no_data_is_read():
    def never():
        raise AssertionError
        yield

    assert update_bn(nn.Linear(2, 2), never()) == []
    assert update_bn(nn.BatchNorm1d(2, track_running_stats=False), never()) == []


def test_a_compiled_model_is_run_as_it_is_written():
    data = batches(4)
    model, plain = network(), network()
    model[0] = torch.compile(model[0], backend="eager")
    names = update_bn(torch.compile(model, backend="eager"), data)
    update_bn(plain, data)
    assert names == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert torch.equal(model[1].running_var, plain[1].running_var)
