"""What is done with a batch."""

from collections import UserDict, namedtuple

import pytest
import torch

from swavg.errors import RequestError
from swavg.training.batches import examples, forward, forward_first, split, to_device

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


class Optional(torch.nn.Module):
    def forward(self, x, scale=None):
        return x.sum() if scale is None else x.sum() * scale.sum()


class Two(torch.nn.Module):
    def forward(self, x, other):
        return x.sum() - other.sum()


def test_the_first_item_is_the_input_as_torchs_update_bn_takes_it():
    assert forward_first(Optional(), (x, y, t)) == x.sum()
    assert forward_first(Two(), (x, y, t)) == x.sum()
    assert forward_first(Bare(), (x, y, t)) == (1, [])
    assert forward_first(Labelled(), {"pixels": x, "labels": t}) == x.sum() + t.sum()


def test_what_may_be_a_target_is_given_to_no_optional_argument():
    with pytest.raises(RequestError, match=r"Optional\.forward\(\) needs 1: is one of them a targ"):
        forward(Optional(), (x, y, t))
    assert forward(Optional(), (x, t)) == x.sum()
    assert forward(Two(), (x, y, t)) == x.sum()


@pytest.mark.parametrize("run", [forward, forward_first])
@pytest.mark.parametrize("batch", [{"image": x}, (x,)])
def test_a_model_that_cannot_be_called_names_forward(run, batch):
    with pytest.raises(RequestError, match=r"Two\.forward\(\) cannot be called") as caught:
        run(Two(), batch)
    assert "forward=lambda model, batch:" in caught.value.hint
    assert "(inputs..., target)" in caught.value.hint
