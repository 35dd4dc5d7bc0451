"""Small tensors that are made together: each gets what it gets alone."""

import pytest
import torch
from checkpoints import save
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from swavg.errors import MismatchError, NumericsError
from swavg.formats import open_checkpoint
from swavg.training import Blend, apply_swa, bundle, save_snapshot
from swavg.training.bundle import bundled
from swavg.training.matching import match

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=12)


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


@given(
    sizes=SIZES,
    weights=st.sampled_from([None, (0.3, 0.7), (1.5, -0.5)]),
    dtypes=st.sampled_from([(torch.float32,), (torch.bfloat16, torch.float32), (torch.float16,)]),
    small=st.sampled_from([0, 5, 1 << 15]),
    block=st.sampled_from([8, 64, 1 << 17]),
)
@settings(max_examples=60, deadline=None)
def test_bundles_of_any_size_give_the_bits_of_single_tensors(
    tmp_path_factory, sizes, weights, dtypes, small, block
):
    paths = files(tmp_path_factory.mktemp("bag"), sizes, dtypes)
    together, alone = Bag(sizes, 9, dtypes), Bag(sizes, 9, dtypes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("swavg.training.apply._BLOCK", block)
        patch.setattr(bundle, "_SMALL", small)
        apply_swa(together, paths, weights)
        patch.setattr(bundle, "_SMALL", -1)
        apply_swa(alone, paths, weights)
    for name, value in alone.state_dict().items():
        assert torch.equal(together.state_dict()[name], value), name


def test_neighbours_are_read_at_once_also_across_what_the_model_lacks(tmp_path):
    state = {f"p{i}": torch.full((3,), float(i)) for i in range(6)}
    path = save(tmp_path / "a.safetensors", state)
    far = save(tmp_path / "b.safetensors", state | {"p2a": torch.zeros(5000)})
    model = Bag([3] * 6)
    del model.p3
    tensors = dict(model.named_parameters())
    matches, kept = match(tensors, [open_checkpoint(p) for p in (path, far)], ["a", "b"], True)
    assert kept == ()
    (made,), alone = bundled(matches, tensors, 1 << 10)
    assert alone == []
    near, apart = made.runs
    # p0 to p5 without p3: one stretch with a gap of 12 bytes; in the other file 20,000 more.
    assert [(run.nbytes, len(run.parts)) for run in near] == [(72, 2)]
    assert [(run.nbytes, len(run.parts)) for run in apart] == [(36, 1), (24, 1)]
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


def test_a_model_that_changes_between_blends_is_arranged_anew(tmp_path):
    paths = files(tmp_path, (3, 4), (torch.float32,))
    model = Bag((3, 4))
    with Blend(model, paths) as blend:
        blend.apply((1, 0))
        model.bfloat16()
        blend.apply((0, 1))
        expected = Bag((3, 4), 2).bfloat16().state_dict()
        assert torch.equal(model.p0, expected["p0"])
        assert torch.equal(model.p1, expected["p1"])
        model.p1 = nn.Parameter(torch.zeros(5))
        with pytest.raises(MismatchError, match="'p1' of the model is no longer what it was"):
            blend.apply((1, 0))


def test_a_model_of_inference_tensors_can_be_filled(tmp_path):
    paths = files(tmp_path, (3, 4), (torch.float32,))
    with torch.inference_mode():
        model = Bag((3, 4))
    apply_swa(model, paths, (1, 0))
    assert torch.equal(model.p0, Bag((3, 4), 1).p0)


def test_expanded_and_lazy_parameters_are_refused_by_name(tmp_path):
    from swavg.errors import RequestError

    paths = files(tmp_path, (3,), (torch.float32,))
    model = nn.Module()
    model.register_buffer("p0", torch.zeros(1).expand(3))
    with pytest.raises(RequestError, match="'p0' is expanded"):
        apply_swa(model, paths)
    lazy = nn.Sequential(nn.LazyLinear(2))
    with pytest.raises(RequestError, match=r"'0\.weight' has no shape yet"):
        apply_swa(lazy, paths)
