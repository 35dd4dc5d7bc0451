"""Tensors as memory that a plan writes: cut anywhere, small ones at once, whatever their layout."""

from itertools import pairwise

import pytest
import torch
from checkpoints import save
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from swavg.errors import MismatchError, NumericsError, RequestError
from swavg.training import apply_swa, save_snapshot, tensor_sink
from swavg.training.model_plan import ModelPlan
from swavg.training.tensor_sink import TensorSink


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 500), max_size=6),
    small=st.sampled_from([0, 5, 1 << 15]),
    own=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=60, deadline=None)
def test_bytes_that_are_cut_anywhere_end_up_in_their_places(sizes, cuts, small, own):
    values = torch.arange(sum(sizes), dtype=torch.float32)
    tensors = [torch.zeros(size, dtype=own) for size in sizes]
    offsets = [4 * sum(sizes[:number]) for number in range(len(sizes))]
    ends = sorted({0, len(values), *(cut for cut in cuts if cut < len(values))})
    data = bytearray(values.numpy().tobytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_sink, "_SMALL", small)
        sink = TensorSink(tensors, [torch.float32] * len(sizes), offsets)
        for start, stop in pairwise(ends):
            sink.pwrite(4 * start, memoryview(data)[4 * start : 4 * stop])
    assert torch.equal(torch.cat(tensors), values.to(own))


@pytest.mark.parametrize("cut", [1, 5, 11, 59])
def test_tensors_that_lie_otherwise_are_written_in_their_places(cut):
    values = torch.arange(60, dtype=torch.float32)
    tensors = [
        torch.zeros(5, 4, 3).permute(2, 1, 0),
        torch.zeros(1, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.zeros(6, 10)[:, ::2].expand(2, 6, 5).clone(),
    ]
    data = bytearray(values.numpy().tobytes())
    for tensor in tensors:
        sink = TensorSink([tensor], [torch.float32], [0])
        sink.pwrite(0, memoryview(data)[: 4 * cut])
        sink.pwrite(4 * cut, memoryview(data)[4 * cut :])
        assert torch.equal(tensor.reshape(-1), values)


class Bag(nn.Module):
    """Parameters of given sizes."""

    def __init__(self, sizes, seed=0, dtypes=(torch.float32,)):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for i, size in enumerate(sizes):
            value = torch.randn(size, generator=generator).to(dtypes[i % len(dtypes)])
            self.register_parameter(f"p{i}", nn.Parameter(value))


def files(folder, sizes, dtypes, count=2):
    return [
        str(save_snapshot(folder / f"{seed}.safetensors", Bag(sizes, seed, dtypes), force=True))
        for seed in range(1, count + 1)
    ]


def test_what_the_model_lacks_is_left_out(tmp_path):
    state = {f"p{i}": torch.full((3,), float(i)) for i in range(6)}
    path = save(tmp_path / "a.safetensors", state)
    far = save(tmp_path / "b.safetensors", state | {"p2a": torch.zeros(5000)})
    model = Bag([3] * 6)
    del model.p3
    apply_swa(model, [path, far])
    assert [p[0].item() for p in model.parameters()] == [0, 1, 2, 4, 5]


def test_what_is_not_finite_is_named_with_its_own_name_and_place(tmp_path):
    sizes, dtypes = (3, 4, 5), (torch.float32,)
    paths = files(tmp_path, sizes, dtypes)
    spoiled = Bag(sizes, 1)
    with torch.no_grad():
        spoiled.p1[2] = float("nan")
    save_snapshot(paths[0], spoiled, force=True)
    with pytest.raises(NumericsError, match=r"1\.safetensors: 'p1' at \[2\] is NaN"):
        apply_swa(Bag(sizes), paths)


def test_a_model_that_changes_between_sums_is_planned_anew(tmp_path):
    paths = files(tmp_path, (3, 4), (torch.float32,))
    model = Bag((3, 4))
    plan = ModelPlan(model, paths)
    plan.apply((1, 0))
    model.bfloat16()
    plan.apply((0, 1))
    expected = Bag((3, 4), 2).bfloat16().state_dict()
    assert torch.equal(model.p0, expected["p0"])
    assert torch.equal(model.p1, expected["p1"])
    model.p1 = nn.Parameter(torch.zeros(5))
    with pytest.raises(MismatchError, match="'p1' of the model is no longer what it was"):
        plan.apply((1, 0))


def test_a_model_of_inference_tensors_can_be_filled(tmp_path):
    paths = files(tmp_path, (3, 4), (torch.float32,))
    with torch.inference_mode():
        model = Bag((3, 4))
    apply_swa(model, paths, (1, 0))
    assert torch.equal(model.p0, Bag((3, 4), 1).p0)


def test_expanded_and_lazy_parameters_are_refused_by_name(tmp_path):
    paths = files(tmp_path, (3,), (torch.float32,))
    model = nn.Module()
    model.register_buffer("p0", torch.zeros(1).expand(3))
    with pytest.raises(RequestError, match="'p0' is expanded"):
        apply_swa(model, paths)
    lazy = nn.Sequential(nn.LazyLinear(2))
    with pytest.raises(RequestError, match=r"'0\.weight' has no shape yet"):
        apply_swa(lazy, paths)
