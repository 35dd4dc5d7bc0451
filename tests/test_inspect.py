"""Looking at one checkpoint: what it holds, and figures of its values."""

import argparse
import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import make
import numpy as np
import pytest
import torch
from checkpoints import save, series, state
from test_memory import MIB, PROMISE, peak, sparse
from torch_files import DTYPES

import swavg
from swavg.dtypes import BY_SAFETENSORS
from swavg.errors import RequestError
from swavg.looking import chunks, inspect


def run(*args, cwd=None, columns=None):
    return subprocess.run(
        [sys.executable, "-m", "swavg", *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


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


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_squares_beyond_float64_neither_overflow_nor_vanish(tmp_path, monkeypatch, scale):
    monkeypatch.setattr(chunks, "CHUNK", 4)
    values = torch.tensor([1, 2, -7, 4, 5, 6, 70.0], dtype=torch.float64)
    found = figures(save(tmp_path / "a.safetensors", {"w": values * scale}))
    assert found.std == pytest.approx(values.std(correction=0).item() * scale, rel=1e-13)
    assert found.mean == pytest.approx(values.mean().item() * scale, rel=1e-13)


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
    with pytest.raises(RequestError, match=r"--include 'x\*' matches none of 4 tensors"):
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
    assert found.pickled.root_key == "model"
    assert set(found.pickled.other_entries) >= {"optimizer", "args", "callback"}
    assert found.pickled.scalars == {"epoch": 7, "best": -math.inf}
    assert found.folder is None


def test_the_json_of_a_training_checkpoint_is_strict(trained):
    done = run("inspect", trained, "--stats", "--json")
    assert done.returncode == 0, done.stderr

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(done.stdout, parse_constant=refuse)
    assert found["pickled"]["scalars"] == {"epoch": 7, "best": None}
    assert found["tensors"][1]["statistics"]["nans"] == 0
    assert found["tensors"][0]["shape"] == [2, 3]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_recipe_of_an_average_is_shown(tmp_path, suffix):
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for seed, path in enumerate(paths):
        if suffix == ".pt":
            torch.save(state(seed), path)
        else:
            save(path, state(seed))
    out = tmp_path / f"mean{suffix}"
    swavg.average(paths, [0.25, 0.75], output=out)
    found = inspect(out)
    assert found.recipe["weights"] == [0.25, 0.75]
    assert found.recipe["inputs"] == [f"a{suffix}", f"b{suffix}"]
    assert "swavg" not in found.metadata
    shown = run("inspect", out).stdout
    assert f"0.75  b{suffix}" in shown
    assert f"weighted, by swavg {swavg.__version__}" in shown


@pytest.mark.parametrize("recipe", ["no json", "[" * 100_000, "[1]", '{"inputs": 3}', "{}"])
def test_a_recipe_that_swavg_did_not_write_does_no_harm(tmp_path, recipe):
    path = save(tmp_path / "a.safetensors", state(1), {"swavg": recipe, "step": "3"})
    done = run("inspect", path)
    assert done.returncode == 0, done.stderr
    assert "step = 3" in done.stdout


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
    shown = run("inspect", folder).stdout
    assert "total_size = 32" in shown
    assert "model-00002-of-00002.safetensors" in shown


def test_a_folder_of_pickled_weights_says_what_else_is_in_them(tmp_path):
    (tmp_path / "m").mkdir()
    torch.save({"state_dict": state(1), "step": 4}, tmp_path / "m" / "pytorch_model.bin")
    found = inspect(tmp_path / "m")
    assert found.pickled.root_key == "state_dict"
    assert found.pickled.scalars == {"step": 4}


def test_the_table_has_a_line_per_tensor_and_the_sums(tmp_path):
    shown = run("inspect", save(tmp_path / "a.safetensors", state(1))).stdout.splitlines()
    rows = [line.split() for line in shown]
    assert ["body.weight", "float32", "[7,", "5]", "140", "B"] in rows
    assert ["steps", "int64", "[]", "8", "B"] in rows
    assert ["float32", "3", "63", "252", "B", "96.9%"] in rows
    assert ["(no", "module)", "1", "1", "8", "B", "3.1%"] in rows
    assert "total       4 tensors, 64 elements, 260 B of values" in shown


def test_the_tree_folds_layers_that_are_alike(tmp_path):
    tensors = {f"net.layers.{i}.{kind}": torch.ones(2) for i in range(12) for kind in "ab"}
    path = save(tmp_path / "a.safetensors", tensors | {"net.layers.12.a": torch.ones(3)})
    rows = [line.split() for line in run("inspect", path, "--tree").stdout.splitlines()]
    assert ["net.layers", "25", "tensors", "51", "204", "B"] in rows
    assert ["0", "to", "11", "2", "tensors", "12", "x", "4", "12", "x", "16", "B"] in rows
    assert ["12.a", "float32", "[3]", "3", "12", "B"] in rows
    every = run("inspect", path, "--tree", "--all").stdout
    assert every.count("2 tensors") == 12


def test_a_name_that_is_both_a_tensor_and_a_module_is_shown_as_both(tmp_path):
    path = save(tmp_path / "a.safetensors", {"w": torch.ones(2), "w.g": torch.ones(3)})
    rows = [line.split() for line in run("inspect", path, "--tree").stdout.splitlines()]
    assert ["w", "float32", "[2]", "2", "8", "B"] in rows
    assert ["w.g", "float32", "[3]", "3", "12", "B"] in rows


@pytest.mark.parametrize("flags", [[], ["--tree"], ["--stats"]])
def test_names_can_neither_move_the_cursor_nor_pass_for_rows_or_markup(tmp_path, flags):
    name = "a\x1b[2J.[red]b[/red]\n:smile:\u202ec"
    metadata = {"note\x07": "x\x1b]0;title\x07"}
    path = save(tmp_path / "a.safetensors", {name: torch.ones(2)}, metadata)
    done = run("inspect", path, *flags)
    assert done.returncode == 0, done.stderr
    assert not {"\x1b", "\x07", "\u202e"} & set(done.stdout)
    assert r"a\x1b[2J.[red]b[/red]\n:smile:\u202ec" in done.stdout
    assert r"note\x07 = x\x1b]0;title\x07" in done.stdout


def test_nan_and_inf_get_columns_only_where_there_are_any(tmp_path):
    good = save(tmp_path / "a.safetensors", {"w": torch.tensor([1.0, 3.0])})
    bad = save(tmp_path / "b.safetensors", {"w": torch.tensor([1.0, math.nan])})
    shown = run("inspect", good, "--stats").stdout
    assert "NaN  " not in shown
    assert "no NaN, no Inf" in shown
    assert ["w", "float32", "[2]", "8", "B", "2", "1", "1", "3"] in [
        line.split() for line in shown.splitlines()
    ]
    assert "1 NaN and 0 Inf in 1 tensor" in run("inspect", bad, "--stats").stdout


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ([], 2, "Missing argument 'CKPT'"),
        (["missing"], 4, "missing: no such file"),
        (["step-100.safetensors", "--include", "zzz"], 2, "matches none of 4 tensors"),
        (["broken.safetensors"], 4, "truncated"),
    ],
)
def test_wrong_calls_say_what_is_wrong(tmp_path, args, code, said):
    series(tmp_path, 1)
    (tmp_path / "broken.safetensors").write_bytes(struct.pack("<Q", 100) + b"{}")
    done = run("inspect", *args, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in " ".join(done.stderr.split())


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F64"])
def test_figures_of_a_tensor_larger_than_the_promise_stay_within_it(tmp_path, dtype):
    itemsize = BY_SAFETENSORS[dtype].itemsize
    path = sparse(tmp_path / "a.safetensors", [128 * MIB // itemsize], dtype, itemsize)
    assert peak("inspect", path, "--stats") <= PROMISE


def test_figures_of_a_large_transposed_tensor_stay_within_the_promise(tmp_path):
    torch.save({"w": torch.ones(4096, 8192).t()}, tmp_path / "a.pt")
    assert peak("inspect", tmp_path / "a.pt", "--stats") <= PROMISE


def test_without_figures_neither_numpy_nor_torch_is_imported(tmp_path):
    path = save(tmp_path / "a.safetensors", state(1))
    code = "import sys; from swavg.looking import inspect; inspect(sys.argv[1]);"
    done = make.python(code + "print(*sys.modules)", path)
    assert done.returncode == 0, done.stderr
    assert {"numpy", "torch", "rich"}.isdisjoint(done.stdout.split())
