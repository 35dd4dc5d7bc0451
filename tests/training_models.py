"""Tiny networks and trajectories for the tests of training."""

import contextlib

import torch
from torch import nn


@contextlib.contextmanager
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def network(seed=0):
    """Convolution, batch-norm, a linear head: parameters, buffers and a counter."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
    )


def batches(count, seed=1, size=8):
    """``count`` batches of small images and labels."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 1, 8, 8, generator=generator) * (1 + i) + i,
         torch.randint(0, 3, (size,), generator=generator))
        for i in range(count)
    ]  # fmt: skip


def sgd(model, **more):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, **more)


def cyclic(i, cycle, high, low):
    """The rate of step ``i`` (from 1) of Izmailov et al. 2018, section 3.2."""
    t = ((i - 1) % cycle + 1) / cycle
    return (1 - t) * high + t * low


def train(model, optimizer, data, after=lambda: None):
    """One pass; ``after`` is called after each optimizer step."""
    model.train()
    for images, labels in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        after()


def wander(model, steps, after=lambda: None, seed=5):
    """Random steps of the parameters instead of training: cheap, and the same for equal seeds."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += (0.1 * noise).to(parameter.dtype)
        after()


def snapshot(model):
    """Copies of the state dict."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(found, expected):
    """Equal names and values, bit for bit."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


class Tied(nn.Module):
    """A head tied to its embedding, and a module that is held twice."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.again = self.head


class Words(nn.Module):
    """A language model of seven words: tied embedding and head, a counter, sizes that two ranks
    cannot share evenly."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 5)
        self.body = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 5))
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("passes", torch.tensor(0))

    def forward(self, words):
        if self.training:
            self.passes += 1
        return self.head(self.body(self.embed(words)))


def words(count, seed=2):
    """``count`` batches of eight words and those that follow them."""
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(0, 7, (2, 8), generator=generator)) for _ in range(count)]


def averaged_training(wrap, share, at_step=lambda step, model, ema, swa: None):
    """Eight steps with an EMA and an SWA, evaluating in the middle; all there is to compare.

    ``wrap`` wraps the model, ``share`` takes a rank's share of a batch.
    """
    from swavg.training.ema import EMA
    from swavg.training.swa import SWA

    model = wrap(Words())
    ema = EMA(model, 0.7)
    swa = SWA(
        torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9),
        start=3, every=2, lr=0.1, anneal_steps=2, model=model,
    )  # fmt: skip
    question = torch.arange(7)
    found = {}

    def answer():
        model.eval()
        with torch.no_grad():
            return model(question).clone()

    for step, (given, following) in enumerate(words(8), 1):
        model.train()
        swa.zero_grad()
        nn.functional.cross_entropy(model(share(given)), share(following)).backward()
        swa.step()
        ema.update(step)
        at_step(step, model, ema, swa)
        if step in (4, 8):
            found[f"own {step}"] = answer()
            with ema.applied():
                found[f"ema {step}"] = answer()
            found[f"own again {step}"] = answer()
    with swa.swapped():
        found["swa"] = answer()
    found["own at last"] = answer()
    return found | {"averaged ema": ema.averaged(), "averaged swa": swa.averaged()}
