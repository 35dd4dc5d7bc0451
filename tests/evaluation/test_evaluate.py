"""The loss and error rate of a model over data, against torch's own figures."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from swavg.errors import RequestError
from swavg.evaluation.batches import Passes
from swavg.evaluation.evaluate import evaluate, parameter_names
from swavg.training.batchnorm import has_statistics


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def classified(count=23, classes=5):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 4, generator=generator)
    return inputs, torch.randint(classes, (count,), generator=generator)


def batches(inputs, targets, size=4):
    """The last one is smaller."""
    return list(zip(inputs.split(size), targets.split(size), strict=True))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 5))


def test_the_loss_is_the_mean_over_examples_not_over_batches(network):
    inputs, targets = classified()
    found = evaluate(network, batches(inputs, targets))
    network.eval()
    with torch.no_grad():
        logits = network(inputs)
    assert found.loss == pytest.approx(functional.cross_entropy(logits, targets).item(), rel=1e-6)
    assert found.error == (logits.argmax(1) != targets).float().mean().item() or math.isclose(
        found.error, int((logits.argmax(1) != targets).sum()) / 23
    )
    assert found.examples == 23


def test_a_metric_of_ones_own_is_the_mean_over_examples(network):
    inputs, targets = classified()
    pairs = batches(inputs, targets)

    def hits(outputs, target):
        return outputs.argmax(1) == target

    def share(outputs, target):
        return float(hits(outputs, target).float().mean())

    found = [evaluate(network, pairs, metric=metric) for metric in (hits, share)]
    assert [each.metric for each in found] == pytest.approx([1 - found[0].error] * 2)
    assert found[0].loss == evaluate(network, pairs).loss


def test_a_metric_of_ones_own_needs_no_loss():
    model = nn.Linear(4, 1)
    inputs = torch.randn(7, 4)
    pairs = [(inputs[:4], torch.zeros(4, 1)), (inputs[4:], torch.zeros(3, 1))]
    with pytest.raises(RequestError, match="not what cross-entropy takes"):
        evaluate(model, pairs)
    found = evaluate(model, pairs, metric=functional.l1_loss)
    assert found.metric == pytest.approx(model(inputs).abs().mean().item(), rel=1e-6)
    assert (found.loss, found.error, found.examples) == (None, None, 7)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda outputs, target: None, "the metric is a NoneType"),
        (lambda outputs, target: 1 / 0, "the metric failed on batch 1: ZeroDivisionError"),
        (lambda outputs, target: outputs[:0], "no examples to count"),
    ],
)
def test_a_metric_that_is_no_number_is_refused(network, metric, message):
    with pytest.raises(RequestError, match=message):
        evaluate(network, batches(*classified()), metric=metric)


def test_the_modes_are_as_before(network):
    network.train()
    network[0].eval()
    modes = [module.training for module in network.modules()]
    with pytest.raises(RequestError, match="the model failed on batch 2"):
        evaluate(network, [classified(), (torch.ones(2, 3), torch.ones(2).long())])
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.grad is None for parameter in network.parameters())


class Named(nn.Module):
    """As Hugging Face models: keyword arguments, an object with a loss and logits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 5)

    def forward(self, pixels, labels=None):
        logits = self.layer(pixels)
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def test_a_model_that_returns_its_own_loss_is_believed():
    model = Named()
    inputs, targets = classified()
    named = [{"pixels": x, "labels": y} for x, y in batches(inputs, targets)]
    logits = model(inputs)["logits"]
    found = evaluate(model, named)
    expected = functional.cross_entropy(logits, targets).item()
    assert found.loss == pytest.approx(expected, rel=1e-6)
    assert found.error == int((logits.argmax(1) != targets).sum()) / 23


@pytest.mark.parametrize("last", [False, True])
def test_targets_of_minus_100_do_not_count(last):
    torch.manual_seed(0)
    logits = torch.randn(3, 6, 7) if last else torch.randn(3, 7, 6)
    targets = torch.randint(7, (3, 6))
    targets[0, 2:] = targets[2, 0] = -100
    model = nn.Identity()
    found = evaluate(model, [(logits, targets)])
    rows = logits if last else logits.movedim(1, 2)
    expected = functional.cross_entropy(rows.reshape(-1, 7), targets.reshape(-1))
    assert found.examples == 18 - 5
    assert found.loss == pytest.approx(expected.item(), rel=1e-6)
    kept = targets != -100
    assert found.error == int((rows.argmax(-1)[kept] != targets[kept]).sum()) / 13


def test_a_loss_function_gives_the_mean_or_one_loss_for_each_example():
    torch.manual_seed(0)
    inputs, targets = torch.randn(10, 1), torch.randn(10, 1)
    pairs = batches(inputs, targets)
    expected = functional.mse_loss(inputs, targets).item()
    one = evaluate(nn.Identity(), pairs, functional.mse_loss)
    each = evaluate(nn.Identity(), pairs, lambda out, target: ((out - target) ** 2).sum(1))
    assert one.loss == pytest.approx(expected, rel=1e-6)
    assert each.loss == pytest.approx(expected, rel=1e-6)
    assert (one.error, one.examples, each.examples) == (None, 10, 10)


def test_classes_are_judged_beside_a_loss_of_ones_own(network):
    inputs, targets = classified()
    pairs = batches(inputs, targets)

    def smoothed(logits, target):
        return functional.cross_entropy(logits, target, label_smoothing=0.1)

    assert evaluate(network, pairs, smoothed).error == evaluate(network, pairs).error


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the data have no batches"),
        ([(torch.ones(2, 3), torch.full((2,), -100))], "no examples to count"),
        ([(torch.ones(2, 3), torch.ones(2))], r"float32 \[2, 3\] for float32 \[2\]"),
        ([(torch.ones(2, 3), torch.ones(4).long())], r"float32 \[2, 3\] for int64 \[4\]"),
        ([torch.ones(2, 3)], r"float32 \[2, 3\] for no target"),
        ([(torch.ones(2, 1), torch.ones(2).long())], "logits of classes"),
    ],
)
def test_data_that_do_not_fit_are_refused(data, message):
    with pytest.raises(RequestError, match=message):
        evaluate(nn.Identity(), data)


def test_a_loss_that_is_no_number_stays_so(network):
    inputs, targets = classified()
    with torch.no_grad():
        network[0].weight.fill_(math.inf)
    assert math.isnan(evaluate(network, batches(inputs, targets)).loss)


class Random:
    """Batches with random numbers, anew in every pass."""

    def __init__(self, size=4, count=3):
        self.size, self.count, self.passes = size, count, 0

    def __iter__(self):
        self.passes += 1
        for _ in range(self.count):
            yield torch.randn(self.size)


def test_every_pass_sees_the_same_data():
    source = Random()
    data = Passes(source)
    first, second = (torch.stack(list(data)) for _ in range(2))
    assert torch.equal(first, second)
    assert source.passes == 1
    assert torch.equal(first, torch.stack(list(Passes(Random()))))


def test_a_loader_that_fills_one_tensor_again_is_kept_batch_by_batch():
    def reused():
        buffer = torch.zeros(2)
        for value in (1.0, 2.0, 3.0):
            yield {"x": (buffer.fill_(value),)}

    data = Passes(reused())
    passes = [[float(batch["x"][0][0]) for batch in data] for _ in range(2)]
    assert passes == [[1, 2, 3], [1, 2, 3]]


def test_data_too_large_to_keep_are_made_again_the_same(monkeypatch):
    monkeypatch.setattr("swavg.evaluation.batches._KEPT", 8)
    source = Random()
    data = Passes(source)
    torch.manual_seed(9)
    state = torch.random.get_rng_state()
    first, second = (torch.stack(list(data)) for _ in range(2))
    assert torch.equal(first, second)
    assert source.passes == 2
    assert torch.equal(torch.random.get_rng_state(), state)


def test_only_the_first_batches_are_taken_and_kept(monkeypatch):
    monkeypatch.setattr("swavg.evaluation.batches._KEPT", 1)
    source = iter(Random(count=10**9))
    data = Passes(source, most=2)
    assert [len(list(data)) for _ in range(2)] == [2, 2]


def test_batch_norm_statistics_are_those_of_their_data(network):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 5))
    inputs, targets = classified()
    pairs = batches(inputs, targets)
    training = [torch.randn(8, 4) + 3 for _ in range(3)]
    assert has_statistics(model)
    assert not has_statistics(network)
    found = evaluate(model, pairs, bn_data=training)
    torch.optim.swa_utils.update_bn(training, model)
    model.eval()
    with torch.no_grad():
        expected = functional.cross_entropy(model(inputs), targets).item()
    assert found.loss == pytest.approx(expected, rel=1e-6)


def test_parameters_have_their_names_and_ties():
    model = nn.Sequential(nn.Embedding(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 4, bias=False))
    model[2].weight = model[0].weight
    assert parameter_names(model) == (("0.weight", "2.weight"), ("1.weight",), ("1.bias",))
    assert parameter_names(nn.DataParallel(model)) == parameter_names(model)
