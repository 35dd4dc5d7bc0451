"""What ``swavg inspect`` prints."""

import argparse
import json
import math
import struct

import make
import numpy as np
import pytest
import torch
from checkpoints import save, series, state
from command_line import swavg
from test_memory import MIB, PROMISE, peak, sparse

from swavg import __version__, average
from swavg.dtypes import BY_SAFETENSORS


def test_the_json_of_a_training_checkpoint_is_strict(tmp_path):
    torch.save({"best": -math.inf, "epoch": 7, "model": state(1)}, tmp_path / "last.pt")
    done = swavg("inspect", tmp_path / "last.pt", "--stats", "--json")
    assert done.returncode == 0, done.stderr

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(done.stdout, parse_constant=refuse)
    assert found["pickled"]["scalars"] == {"epoch": 7, "best": None}
    assert found["tensors"][0]["shape"] == [7, 5]


def test_the_recipe_of_an_average_is_shown(tmp_path):
    paths, out = series(tmp_path, 2), tmp_path / "mean.safetensors"
    average(paths, [0.25, 0.75], output=out)
    shown = swavg("inspect", out).stdout
    assert "0.75  step-200.safetensors" in shown
    assert f"weighted, by swavg {__version__}" in shown


@pytest.mark.parametrize("recipe", ["no json", "[" * 100_000, "[1]", '{"inputs": 3}', "{}"])
def test_a_recipe_that_swavg_did_not_write_does_no_harm(tmp_path, recipe):
    path = save(tmp_path / "a.safetensors", state(1), {"swavg": recipe, "step": "3"})
    done = swavg("inspect", path)
    assert done.returncode == 0, done.stderr
    assert "step = 3" in done.stdout


def test_a_folder_shows_its_shards_and_side_files(tmp_path):
    one, two = np.ones((2, 3), np.float32), np.zeros(4, np.float16)
    shards = {
        "model-00001-of-00002.safetensors": {"a.w": one},
        "model-00002-of-00002.safetensors": {"b.w": two},
    }
    folder = make.sharded(tmp_path / "m", shards, config__json="{}", optimizer__pt="x")
    shown = swavg("inspect", folder).stdout
    assert "total_size = 32" in shown
    assert "model-00002-of-00002.safetensors" in shown


def test_the_table_has_a_line_per_tensor_and_the_sums(tmp_path):
    shown = swavg("inspect", save(tmp_path / "a.safetensors", state(1))).stdout.splitlines()
    rows = [line.split() for line in shown]
    assert ["body.weight", "float32", "[7,", "5]", "140", "B"] in rows
    assert ["steps", "int64", "[]", "8", "B"] in rows
    assert ["float32", "3", "63", "252", "B", "96.9%"] in rows
    assert ["(no", "module)", "1", "1", "8", "B", "3.1%"] in rows
    assert "total       4 tensors, 64 elements, 260 B of values" in shown


def test_the_tree_folds_layers_that_are_alike(tmp_path):
    tensors = {f"net.layers.{i}.{kind}": torch.ones(2) for i in range(12) for kind in "ab"}
    path = save(tmp_path / "a.safetensors", tensors | {"net.layers.12.a": torch.ones(3)})
    rows = [line.split() for line in swavg("inspect", path, "--tree").stdout.splitlines()]
    assert ["net.layers", "25", "tensors", "51", "204", "B"] in rows
    assert ["0", "to", "11", "2", "tensors", "12", "x", "4", "12", "x", "16", "B"] in rows
    assert ["12.a", "float32", "[3]", "3", "12", "B"] in rows
    every = swavg("inspect", path, "--tree", "--all").stdout
    assert every.count("2 tensors") == 12


def test_a_name_that_is_both_a_tensor_and_a_module_is_shown_as_both(tmp_path):
    path = save(tmp_path / "a.safetensors", {"w": torch.ones(2), "w.g": torch.ones(3)})
    rows = [line.split() for line in swavg("inspect", path, "--tree").stdout.splitlines()]
    assert ["w", "float32", "[2]", "2", "8", "B"] in rows
    assert ["w.g", "float32", "[3]", "3", "12", "B"] in rows


@pytest.mark.parametrize("flags", [[], ["--tree"], ["--stats"]])
def test_names_can_neither_move_the_cursor_nor_pass_for_rows_or_markup(tmp_path, flags):
    name = "a\x1b[2J.[red]b[/red]\n:smile:\u202ec"
    metadata = {"note\x07": "x\x1b]0;title\x07"}
    path = save(tmp_path / "a.safetensors", {name: torch.ones(2)}, metadata)
    done = swavg("inspect", path, *flags)
    assert done.returncode == 0, done.stderr
    assert not {"\x1b", "\x07", "\u202e"} & set(done.stdout)
    assert r"a\x1b[2J.[red]b[/red]\n:smile:\u202ec" in done.stdout
    assert r"note\x07 = x\x1b]0;title\x07" in done.stdout


def test_nan_and_inf_get_columns_only_where_there_are_any(tmp_path):
    good = save(tmp_path / "a.safetensors", {"w": torch.tensor([1.0, 3.0])})
    bad = save(tmp_path / "b.safetensors", {"w": torch.tensor([1.0, math.nan])})
    shown = swavg("inspect", good, "--stats").stdout
    assert "NaN  " not in shown
    assert "no NaN, no Inf" in shown
    assert ["w", "float32", "[2]", "8", "B", "2", "1", "1", "3"] in [
        line.split() for line in shown.splitlines()
    ]
    assert "1 NaN and 0 Inf in 1 tensor" in swavg("inspect", bad, "--stats").stdout


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
    done = swavg("inspect", *args, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in " ".join(done.stderr.split())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F64"])
def test_figures_of_a_tensor_larger_than_the_promise_stay_within_it(tmp_path, dtype):
    itemsize = BY_SAFETENSORS[dtype].itemsize
    path = sparse(tmp_path / "a.safetensors", [128 * MIB // itemsize], dtype, itemsize)
    assert peak("inspect", path, "--stats") <= PROMISE


@pytest.mark.slow
def test_figures_of_a_large_transposed_tensor_stay_within_the_promise(tmp_path):
    torch.save({"w": torch.ones(4096, 8192).t()}, tmp_path / "a.pt")
    assert peak("inspect", tmp_path / "a.pt", "--stats") <= PROMISE


def test_what_torch_would_run_is_told_from_what_it_would_not_run_by_default(tmp_path):
    holds = {"model": state(1), "args": argparse.Namespace(lr=0.1)}
    torch.save(holds, tmp_path / "last.pt")
    shown = swavg("inspect", tmp_path / "last.pt").stdout
    assert "torch runs  collections.OrderedDict, torch._utils._rebuild_tensor_v2\n" in shown
    assert "foreign     argparse.Namespace\n" in shown
    assert "swavg runs nothing" in shown
    torch.save(holds["model"], tmp_path / "model.pt")
    assert "foreign" not in swavg("inspect", tmp_path / "model.pt").stdout


def test_the_lineage_of_an_average_is_a_tree(tmp_path):
    paths = series(tmp_path, 3)
    average(paths[:2], [0.25, 0.75], output=tmp_path / "a.safetensors")
    average([tmp_path / "a.safetensors", paths[2]], output=tmp_path / "b.safetensors")
    average([tmp_path / f"{name}.safetensors" for name in "ab"], output=tmp_path / "c.safetensors")
    # What the recipe kept is enough.
    for name in "ab":
        (tmp_path / f"{name}.safetensors").unlink()
    shown = swavg("inspect", tmp_path / "c.safetensors").stdout
    tree = [line[12:] for line in shown.splitlines() if ".safetensors, " in line]
    assert [line.partition(", ")[0] for line in tree] == [
        "0.5  a.safetensors",
        "  0.25  step-100.safetensors",
        "  0.75  step-200.safetensors",
        "0.5  b.safetensors",
        "  0.5  a.safetensors",
        "  0.5  step-300.safetensors",
    ]
    assert tree[0].endswith(": weighted")
    assert tree[4].endswith(": weighted (as above)")


def test_what_an_older_recipe_does_not_say_is_found_beside_it(tmp_path):
    paths = series(tmp_path, 2)
    average(paths, output=tmp_path / "a.safetensors")
    older = {"method": "weighted", "inputs": ["a.safetensors", "gone.pt"], "weights": [0.5, 0.5]}
    path = save(tmp_path / "b.safetensors", state(1), {"swavg": json.dumps(older)})
    shown = swavg("inspect", path).stdout
    assert "  0.5  a.safetensors: mean\n" in shown
    assert "    0.5  step-100.safetensors, " in shown
    assert "  0.5  gone.pt\n" in shown


def test_a_lineage_that_goes_round_ends(tmp_path):
    digits = "0123456789abcdef"
    entry = {"method": "mean", "inputs": ["x"] * 50, "weights": [0.02] * 50, "sizes": [1] * 50}
    recipe = {**entry, "fingerprints": [digits] * 50}
    lineage = [{**recipe, "fingerprint": digits}]
    text = json.dumps({**recipe, "lineage": lineage})
    path = save(tmp_path / "a.safetensors", state(1), {"swavg": text})
    for more in ([], ["--all"]):
        shown = swavg("inspect", path, *more).stdout
        assert 40 <= sum("  x, 1 B" in line for line in shown.splitlines()) <= 100
    assert "and 30 more; --all shows them" in swavg("inspect", path).stdout
