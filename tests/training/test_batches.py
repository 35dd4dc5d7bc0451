"""What is done with a batch."""

from collections import UserDict, namedtuple

import pytest
import torch

from swavg.errors import RequestError
from swavg.training.batches import examples, forward, split, to_device

x, y, t = torch.ones(2, 3), torch.zeros(2, 3), torch.tensor([0, 1])


class Labelled(torch.nn.Module):
    def forward(self, pixels, labels=None):
        return pixels.sum() if labels is None else pixels.sum() + labels.sum()


class Bare(torch.nn.Module):
    def forward(self, *inputs, **named):
        return len(inputs), sorted(named)


@pytest.mark.parametrize(
    ("batch", "args", "kwargs", "target"),
    [
        (x, (x,), {}, None),
        ((x,), (x,), {}, None),
        ([x, t], (x,), {}, t),
        ((x, y, t), (x, y), {}, t),
        ({"pixels": x}, (), {"pixels": x}, None),
        ({"pixels": x, "labels": t}, (), {"pixels": x}, t),
        (UserDict(pixels=x, target=t), (), {"pixels": x}, t),
    ],
)
def test_a_batch_is_inputs_and_target(batch, args, kwargs, target):
    found = split(batch)
    assert all(one is other for one, other in zip(found[0], args, strict=True))
    assert found[1].keys() == kwargs.keys()
    assert found[2] is target


def test_labels_stay_for_a_model_that_takes_them():
    batch = {"pixels": x, "labels": t}
    assert split(batch, Labelled())[1].keys() == batch.keys()
    assert split(batch, Bare())[1].keys() == {"pixels"}
    assert forward(Labelled(), batch) == x.sum() + t.sum()
    assert forward(torch.compile(Labelled(), backend="eager"), batch) == x.sum() + t.sum()
    assert forward(Bare(), batch) == (0, ["pixels"])
    assert forward(Bare(), (x, y, t)) == (2, [])


def test_an_empty_batch_is_refused():
    with pytest.raises(RequestError, match="A batch is empty"):
        split(())


Pair = namedtuple("Pair", "image label")


def test_tensors_move_and_everything_else_stays():
    batch = Pair({"a": [x, "text"]}, (t, 3))
    moved = to_device(batch, "meta")
    assert isinstance(moved, Pair)
    assert moved.image["a"][0].device.type == "meta"
    assert moved.image["a"][1] == "text"
    assert moved.label[0].device.type == "meta"
    assert moved.label[1] == 3


@pytest.mark.parametrize(
    ("batch", "count"), [(x, 2), ((torch.tensor(3.0), y), 2), ({"n": 3, "x": [x]}, 2), ("ab", None)]
)
def test_examples_are_the_length_of_the_first_tensor(batch, count):
    assert examples(batch) == count
