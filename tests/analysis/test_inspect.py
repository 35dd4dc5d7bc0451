"""Looking at one checkpoint: what it holds, and figures of its values."""

import argparse
import json
import math
from pathlib import Path

import make
import numpy as np
import pytest
import torch
from checkpoints import save, state
from test_memory import MIB, PROMISE, sparse

from swavg.analysis import chunks, inspect
from swavg.dtypes import BY_NAME, BY_SAFETENSORS
from swavg.engine.average import average
from swavg.errors import RequestError

DTYPES = [getattr(torch, name) for name, dtype in BY_NAME.items() if dtype.bits >= 8]


def figures(path, name="w", **more):
    found = inspect(path, stats=True, **more)
    (entry,) = [entry for entry in found.tensors if entry.name == name]
    return entry.statistics


def random(dtype, shape=(41, 23)):
    generator = torch.Generator().manual_seed(3)
    if dtype == torch.bool:
        return torch.randn(shape, generator=generator) > 0
    if dtype.is_complex:
        parts = torch.randn((*shape, 2), generator=generator)
        if dtype == torch.complex32:
            return torch.view_as_complex(parts.half())
        return torch.view_as_complex(parts).to(dtype)
    if dtype.is_floating_point:
        return (torch.randn(shape, generator=generator) + 0.5).abs().to(dtype)
    return torch.randint(0, 100, shape, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("step", [1 << 17, 64, 7])
def test_figures_of_every_dtype_are_those_of_torch_whatever_the_chunk(
    tmp_path, monkeypatch, dtype, step
):
    monkeypatch.setattr(chunks, "CHUNK", step)
    tensor = random(dtype)
    torch.save({"w": tensor}, tmp_path / "a.pt")
    found = figures(tmp_path / "a.pt")
    wide = tensor.to(torch.complex128).abs() if dtype.is_complex else tensor.double()
    assert found.mean == pytest.approx(wide.mean().item(), rel=1e-13)
    assert found.std == pytest.approx(wide.std(correction=0).item(), rel=1e-12)
    assert (found.nans, found.infs) == (0, 0)
    assert found.min == pytest.approx(wide.min().item(), rel=1e-15)
    assert found.max == pytest.approx(wide.max().item(), rel=1e-15)


@pytest.mark.parametrize("code", ["F4", "F6_E2M3", "F6_E3M2"])
@pytest.mark.parametrize("step", [1 << 17, 5])
def test_figures_of_packed_floats_are_those_of_their_elements(tmp_path, monkeypatch, code, step):
    monkeypatch.setattr(chunks, "CHUNK", step)
    data = bytes(np.random.default_rng(0).integers(0, 256, 96, dtype=np.uint8))
    path = tmp_path / "a.safetensors"
    elements = 96 * 8 // BY_SAFETENSORS[code].bits
    path.write_bytes(make.packed({"w": (code, [elements], data)}))
    wide = make.unpacked(data, code).astype(np.float64)
    found = figures(path)
    assert found.mean == pytest.approx(wide.mean(), rel=1e-13)
    assert found.std == pytest.approx(wide.std(), rel=1e-13)
    assert (found.min, found.max) == (wide.min(), wide.max())


@pytest.mark.parametrize("step", [1 << 17, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_nan_and_inf_are_counted_and_left_out(tmp_path, monkeypatch, dtype, step):
    monkeypatch.setattr(chunks, "CHUNK", step)
    nan, inf = math.nan, math.inf
    tensor = torch.tensor([nan, 1, inf, 2, -inf, nan, nan, 6, -1, nan, nan, nan], dtype=dtype)
    found = figures(save(tmp_path / "a.safetensors", {"w": tensor}))
    assert (found.nans, found.infs) == (6, 2)
    assert (found.min, found.max, found.mean) == (-1, 6, 2)
    assert found.std == pytest.approx(np.std([1, 2, 6, -1]), rel=1e-14)


def test_a_complex_element_is_nan_or_inf_if_a_part_is(tmp_path):
    tensor = torch.tensor([3 + 4j, complex(math.nan, 1), complex(1, -math.inf)])
    found = figures(save(tmp_path / "a.safetensors", {"w": tensor}))
    assert (found.nans, found.infs, found.mean, found.std) == (1, 1, 5, 0)


@pytest.mark.parametrize(
    "tensor",
    [torch.tensor([]), torch.empty(3, 0), torch.tensor([math.nan]), torch.empty(0, dtype=int)],
    ids=["empty", "no columns", "only NaN", "no integers"],
)
def test_figures_of_nothing_are_none(tmp_path, tensor):
    found = figures(save(tmp_path / "a.safetensors", {"w": tensor}))
    assert (found.mean, found.std, found.min, found.max) == (None,) * 4
    assert found.nans == tensor.numel()


def test_a_scalar_is_its_own_mean(tmp_path):
    found = figures(save(tmp_path / "a.safetensors", {"w": torch.tensor(-0.3)}))
    value = torch.tensor(-0.3).item()
    assert (found.mean, found.std, found.min, found.max) == (value, 0, value, value)


def test_a_constant_deviates_by_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 13)
    found = figures(save(tmp_path / "a.safetensors", {"w": torch.full((1000,), 0.1)}))
    assert (found.mean, found.std) == (torch.tensor(0.1).item(), 0)


def test_a_small_deviation_from_a_large_mean_is_not_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 1000)
    values = 1e9 + torch.randn(20_000, generator=torch.Generator().manual_seed(0)).double()
    found = figures(save(tmp_path / "a.safetensors", {"w": values}))
    assert found.std == pytest.approx(values.std(correction=0).item(), rel=1e-8)


@pytest.mark.parametrize("step", [1 << 17, 4, 2])
def test_sums_that_leave_float64_are_infinite_or_unknown(tmp_path, monkeypatch, step):
    monkeypatch.setattr(chunks, "CHUNK", step)
    values = torch.tensor([1.0, 1.5, 1.7, 1.6, -1.7, -1.7], dtype=torch.float64) * 1e308
    found = figures(save(tmp_path / "a.safetensors", {"w": values}))
    assert (found.min, found.max) == (-1.7e308, 1.7e308)
    assert found.std in (None, math.inf)


def test_the_range_of_large_integers_is_exact(tmp_path):
    values = torch.tensor([2**53 + 1, -(2**63), 2**63 - 1])
    found = figures(save(tmp_path / "a.safetensors", {"w": values}))
    assert (found.min, found.max) == (-(2**63), 2**63 - 1)


def test_strided_tensors_are_read_in_the_order_of_their_elements(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 10)
    base = torch.arange(60.0).reshape(6, 10)
    torch.save({"w": base.t()[::3], "other": base[:, 1:4]}, tmp_path / "a.pt")
    found = figures(tmp_path / "a.pt")
    assert found.mean == base.t()[::3].mean().item()
    assert figures(tmp_path / "a.pt", "other").max == 53


def test_tensors_are_summed_by_dtype_and_module_and_ties_once(tmp_path):
    shared = torch.ones(10, 4)
    torch.save(
        {
            "module.embed.weight": shared,
            "module.head.weight": shared,
            "module.head.bias": torch.zeros(10, dtype=torch.float16),
            "module.scale": torch.tensor(1.0),
        },
        tmp_path / "a.pt",
    )
    found = inspect(tmp_path / "a.pt", stats=True)
    assert found.ties == (("module.embed.weight", "module.head.weight"),)
    assert (found.total.tensors, found.total.elements, found.total.nbytes) == (3, 51, 184)
    assert {name: each.nbytes for name, each in found.by_dtype.items()} == {
        "float32": 164,
        "float16": 20,
    }
    assert {name: (each.tensors, each.elements) for name, each in found.by_module.items()} == {
        "embed": (1, 40),
        "head": (1, 10),
        "": (1, 1),
    }
    tied = found.tensors[1]
    assert (tied.tied_to, tied.statistics.mean) == ("module.embed.weight", 1)


def test_include_looks_at_some_tensors_only(tmp_path):
    path = save(tmp_path / "a.safetensors", state(1))
    found = inspect(path, include=["body.*"])
    assert [entry.name for entry in found.tensors] == ["body.bias", "body.weight"]
    assert (found.held, found.total.elements) == (4, 42)
    with pytest.raises(RequestError, match=r"include 'x\*' matches none of 4 tensors"):
        inspect(path, include=["x*"])


class Unknown:
    def __reduce__(self):
        return (Path, ("never",))


@pytest.fixture
def trained(tmp_path):
    """A training checkpoint as trainers write it, with classes that are not to be imported."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    torch.save(
        {
            "epoch": 7,
            "best": -math.inf,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "args": argparse.Namespace(lr=0.1),
            "callback": Unknown(),
        },
        tmp_path / "last.pt",
    )
    return tmp_path / "last.pt"


def test_a_pt_says_where_its_state_dict_lies_and_what_else_it_holds(trained):
    found = inspect(trained)
    assert [entry.name for entry in found.tensors] == ["weight", "bias"]
    assert found.pickled.key == "model"
    assert set(found.pickled.other_entries) >= {"optimizer", "args", "callback"}
    assert found.pickled.scalars == {"epoch": 7, "best": -math.inf}
    assert found.pickled.callables == (
        "collections.OrderedDict", "torch._utils._rebuild_tensor_v2",
    )  # fmt: skip
    assert found.pickled.foreign == ("argparse.Namespace", "pathlib.Path")
    assert found.folder is None


def test_a_folder_says_what_torch_would_run_of_any_of_its_files(tmp_path):
    weight_map = {}
    for shard, name in enumerate("wb"):
        file = f"pytorch_model-{shard + 1:05}-of-00002.bin"
        torch.save({name: torch.ones(3), "x": [Unknown(), argparse.Namespace()][shard]},
                   tmp_path / file)  # fmt: skip
        weight_map[name] = file
    index = {"metadata": {}, "weight_map": weight_map}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert inspect(tmp_path).pickled.foreign == ("argparse.Namespace", "pathlib.Path")


def test_a_folder_of_pickled_weights_says_what_else_is_in_them(tmp_path):
    (tmp_path / "m").mkdir()
    torch.save({"state_dict": state(1), "step": 4}, tmp_path / "m" / "pytorch_model.bin")
    found = inspect(tmp_path / "m")
    assert found.pickled.key == "state_dict"
    assert found.pickled.scalars == {"step": 4}


def test_without_figures_neither_numpy_nor_torch_is_imported(tmp_path):
    path = save(tmp_path / "a.safetensors", state(1))
    code = "import sys; from swavg.analysis import inspect; inspect(sys.argv[1]);"
    done = make.python(code + "print(*sys.modules)", path)
    assert done.returncode == 0, done.stderr
    assert {"numpy", "torch", "rich"}.isdisjoint(done.stdout.split())


def peak(path):
    """Bytes that a process takes at most for the figures of a checkpoint."""
    code = (
        "import sys\nfrom swavg.analysis import inspect\ninspect(sys.argv[1], stats=True)\n"
        "import re\nstatus = open('/proc/self/status').read()\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1])"
    )
    done = make.python(code, path)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) * 1024


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F64"])
def test_figures_of_a_tensor_larger_than_the_promise_stay_within_it(tmp_path, dtype):
    itemsize = BY_SAFETENSORS[dtype].itemsize
    path = sparse(tmp_path / "a.safetensors", [128 * MIB // itemsize], dtype, itemsize)
    assert peak(path) <= PROMISE


@pytest.mark.slow
def test_figures_of_a_large_transposed_tensor_stay_within_the_promise(tmp_path):
    torch.save({"w": torch.ones(4096, 8192).t()}, tmp_path / "a.pt")
    assert peak(tmp_path / "a.pt") <= PROMISE


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_recipe_of_an_average_is_read(tmp_path, suffix):
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for seed, path in enumerate(paths):
        if suffix == ".pt":
            torch.save(state(seed), path)
        else:
            save(path, state(seed))
    out = tmp_path / f"mean{suffix}"
    average(paths, [0.25, 0.75], output=out)
    found = inspect(out)
    assert found.recipe["weights"] == [0.25, 0.75]
    assert found.recipe["inputs"] == [f"a{suffix}", f"b{suffix}"]
    assert "swavg" not in found.metadata


def test_a_folder_shows_its_shards_and_side_files(tmp_path):
    one, two = np.ones((2, 3), np.float32), np.zeros(4, np.float16)
    shards = {
        "model-00001-of-00002.safetensors": {"a.w": one},
        "model-00002-of-00002.safetensors": {"b.w": two},
    }
    folder = make.sharded(tmp_path / "m", shards, config__json="{}", optimizer__pt="x")
    found = inspect(folder, stats=True)
    assert [(shard.name, shard.tensors) for shard in found.folder.shards] == [
        (name, 1) for name in shards
    ]
    assert (found.folder.side_files, found.folder.left_out) == (("config.json",), ("optimizer.pt",))
    assert {entry.name: entry.file for entry in found.tensors} == dict(
        zip(["a.w", "b.w"], shards, strict=True)
    )
    assert (found.folder.index, found.folder.index_metadata) == (
        "model.safetensors.index.json",
        {"total_size": 32},
    )


def test_the_json_of_a_training_checkpoint_is_strict(trained):
    text = json.dumps(inspect(trained, stats=True).to_json(), allow_nan=False)
    assert json.loads(text)["pickled"]["scalars"] == {"epoch": 7, "best": None}


def test_tensors_of_one_element_beside_the_weights_are_values_and_among_them_are_not(tmp_path):
    torch.save({"model": state(1), "step": torch.tensor(5)}, tmp_path / "a.pt")
    assert inspect(tmp_path / "a.pt").pickled.scalars == {"step": 5}
    torch.save({"w": torch.ones(2), "scale": torch.tensor(5.0), "epoch": 3}, tmp_path / "b.pt")
    assert inspect(tmp_path / "b.pt").pickled.scalars == {"epoch": 3}


def test_names_with_slashes_are_grouped_by_them(tmp_path):
    names = ("model/layer.0/kernel", "model/layer.1/kernel", "step")
    np.savez(tmp_path / "a.npz", **{name: np.ones(2, np.float32) for name in names})
    assert {k: v.tensors for k, v in inspect(tmp_path / "a.npz").by_module.items()} == {
        "model": 2,
        "": 1,
    }
