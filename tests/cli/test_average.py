"""``swavg average``: weights, paths, outputs, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import load, save, series, state
from command_line import SWAVG, process, shell, swavg
from safetensors.torch import save_file


@pytest.fixture
def pair(tmp_path):
    """Two checkpoints, a and b, in a folder of their own."""
    save(tmp_path / "a.safetensors", state(1))
    save(tmp_path / "b.safetensors", state(2))
    return tmp_path


def mean(folder, *weights):
    one, two = load(folder / "a.safetensors"), load(folder / "b.safetensors")
    v, w = weights or (0.5, 0.5)
    return (v * one["body.bias"].double() + w * two["body.bias"].double()).float()


WEIGHTS = ["--weights", "0.25", "0.75"]


@pytest.mark.parametrize(
    "args",
    [
        ["a.safetensors", "b.safetensors", *WEIGHTS],
        [*WEIGHTS, "a.safetensors", "b.safetensors"],
        ["a.safetensors", *WEIGHTS, "b.safetensors"],
        ["a.safetensors", "b.safetensors", "--weights", "0.25,0.75"],
        ["a.safetensors", "b.safetensors", "--weights", "0.25,", "0.75"],
        ["a.safetensors", "b.safetensors", "--weights=0.25,0.75"],
        ["a.safetensors", "b.safetensors", "--weights=0.25", "0.75"],
        ["a.safetensors", "b.safetensors", "-w", "0.25", "0.75"],
        ["--weights", "0.25", "--weights", "0.75", "a.safetensors", "b.safetensors"],
        ["a.safetensors", "--weights", ".25", "7.5e-1", "--", "b.safetensors"],
    ],
)
def test_weights_take_as_many_numbers_as_follow(pair, args):
    done = swavg("average", "-o", "c.safetensors", *args, cwd=pair)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "c.safetensors\n"
    assert torch.equal(load(pair / "c.safetensors")["body.bias"], mean(pair, 0.25, 0.75))


def test_negative_weights_and_zero_are_numbers_and_not_options(pair):
    args = ["a.safetensors", "b.safetensors", "-o", "c.safetensors", "--force", "--weights"]
    assert swavg("average", *args, "-0.5", "1.5", cwd=pair).returncode == 0
    assert torch.equal(load(pair / "c.safetensors")["body.bias"], mean(pair, -0.5, 1.5))
    assert swavg("average", *args, "1", "0", cwd=pair).returncode == 0
    assert torch.equal(load(pair / "c.safetensors")["body.bias"], mean(pair, 1, 0))


@pytest.mark.slow
@pytest.mark.parametrize("written", ["-w0.25 0.75", "-w=0.25,0.75", "--weights '0.25 0.75'"])
def test_weights_may_be_written_in_other_ways(pair, written):
    done = shell(f"swavg average a.safetensors b.safetensors {written} -n --json", pair)
    assert done.returncode == 0, done.stderr
    assert [entry["weight"] for entry in json.loads(done.stdout)["inputs"]] == [0.25, 0.75]


def test_the_null_flag_behind_weights_is_not_a_weight(pair):
    done = swavg(
        "average", "-", "--weights", "0.5", "0.5", "-0", "-o", "c.safetensors", cwd=pair,
        stdin="a.safetensors\0b.safetensors\0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_flag_for_nul_is_no_weight(pair):
    done = shell("swavg average a.safetensors b.safetensors -w -0 1", pair)
    assert done.returncode == 2
    assert "write the weight as 0" in done.stderr


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["a", "b", "--weights", "0.5"], 2, "1 weight for 2 checkpoints"),
        (["a", "b", "--weights", "0.5", "0.6"], 2, "sum to 1.1, not 1"),
        (["a", "b", "--weights"], 2, "--weights needs numbers"),
        (["a", "b", "--weights", "nan", "1"], 2, "not a finite number"),
        (["a", "b", "--weights", "x"], 2, "--weights needs numbers, not 'x'"),
        ([], 2, "Give the checkpoints"),
        (["a", "missing"], 4, "missing: no such file"),
        (["a", "b", "-o", "a/c.safetensors"], 5, "cannot be made: 'a' is no folder"),
        (["a", "b", "-o", "b"], 5, "is an input"),
        (["a", "b", "-o", "b", "--force"], 5, "is an input"),
        (["a", "b", "--memory", "lots"], 2, "is no size"),
        (["a", "b", "--device", "gpu"], 2, "'gpu' is no device"),
        (["a", "b", "--device", "cuda"], 2, "sees no CUDA device"),
        (["a", "b", "--threads", "0"], 2, "0 is not in the range"),
        (["a", "b", "--include", "zzz*"], 2, "none of 4 tensors"),
    ],
)
def test_wrong_calls_say_what_is_wrong_and_write_nothing(pair, args, code, said):
    for name in "ab":
        (pair / f"{name}.safetensors").rename(pair / name)
    before = {path.name: path.read_bytes() for path in pair.iterdir()}
    done = swavg("average", *args, cwd=pair)
    assert done.returncode == code, done.stderr
    assert said in " ".join(done.stderr.split())
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert {path.name: path.read_bytes() for path in pair.iterdir()} == before


def test_folders_above_the_output_are_made_by_a_run_that_ends_well(pair):
    args = ["average", "a.safetensors", "b.safetensors", "-o", "new/deep/c.safetensors"]
    assert swavg(*args, "--dry-run", cwd=pair).returncode == 0
    assert not (pair / "new").exists()
    save(pair / "inf.safetensors", {**state(1), "body.bias": torch.full((7,), torch.inf)})
    refused = swavg(*args[:2], "inf.safetensors", "-o", "new/deep/c.safetensors", cwd=pair)
    assert (refused.returncode, (pair / "new").exists()) == (6, False)
    done = swavg(*args, cwd=pair)
    assert (done.returncode, done.stdout) == (0, "new/deep/c.safetensors\n")
    assert torch.equal(load(pair / "new/deep/c.safetensors")["body.bias"], mean(pair))


def test_a_folder_is_written_where_an_empty_one_is(pair):
    for name in "ab":
        (pair / name).mkdir()
        (pair / f"{name}.safetensors").rename(pair / name / "model.safetensors")
        (pair / name / "config.json").write_text("{}")
    (pair / "out").mkdir()
    (pair / "link").symlink_to("out")
    assert swavg("average", "a", "b", "-o", "link", "--dry-run", cwd=pair).returncode == 0
    assert swavg("average", "a", "b", "-o", "link", cwd=pair).returncode == 0
    assert sorted(os.listdir(pair / "out")) == ["config.json", "model.safetensors"]
    again = swavg("average", "a", "b", "-o", "out", cwd=pair)
    assert (again.returncode, "exists already" in again.stderr) == (7, True)
    (pair / "here").mkdir()
    refused = swavg("average", "../a", "../b", "-o", ".", cwd=pair / "here")
    assert (refused.returncode, "such as ./averaged" in refused.stderr) == (5, True)
    assert swavg("average", "../a", "../b", "-o", "./averaged", cwd=pair / "here").returncode == 0


def test_normalize_and_raw_weights_are_the_ways_out_that_the_error_offers(pair):
    args = ["average", "a.safetensors", "b.safetensors", "--weights", "1", "3"]
    refused = swavg(*args, cwd=pair)
    assert "--normalize" in refused.stderr
    assert "--raw-weights" in refused.stderr
    assert swavg(*args, "--normalize", "-o", "n.safetensors", cwd=pair).returncode == 0
    assert torch.equal(load(pair / "n.safetensors")["body.bias"], mean(pair, 0.25, 0.75))
    assert swavg(*args, "--raw-weights", "-o", "r.safetensors", cwd=pair).returncode == 0
    assert torch.equal(load(pair / "r.safetensors")["body.bias"], mean(pair, 1, 3))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth.tar", ".ckpt"])
def test_without_an_output_it_is_averaged_with_the_suffix_of_the_first(tmp_path, suffix):
    for index in (1, 2):
        if suffix == ".safetensors":
            save(tmp_path / f"{index}{suffix}", state(index))
        else:
            torch.save(state(index), tmp_path / f"{index}{suffix}")
    done = swavg("average", f"1{suffix}", f"2{suffix}", cwd=tmp_path)
    assert done.stdout == f"averaged{suffix}\n"
    assert (tmp_path / f"averaged{suffix}").stat().st_size > 0


def test_the_published_path_is_the_one_line_on_stdout(pair):
    shell = f"OUT=$({' '.join(SWAVG)} average a.safetensors b.safetensors) && ls -s $OUT"
    done = subprocess.run(shell, shell=True, cwd=pair, capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "averaged.safetensors"


def test_paths_come_from_stdin_line_by_line(pair):
    done = swavg(
        "average", "-", "-o", "c.safetensors", cwd=pair, stdin="a.safetensors\nb.safetensors\n\n"
    )
    assert done.returncode == 0, done.stderr
    assert torch.equal(load(pair / "c.safetensors")["body.bias"], mean(pair))


def test_paths_from_stdin_keep_their_place_among_the_others(pair):
    done = swavg(
        "average", "-", "b.safetensors", "--weights", "0.25", "0.75", "-o", "c.safetensors",
        cwd=pair, stdin="a.safetensors\n",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert torch.equal(load(pair / "c.safetensors")["body.bias"], mean(pair, 0.25, 0.75))


def test_nul_separated_paths_may_hold_newlines(pair):
    (pair / "a.safetensors").rename(pair / "a\nb.safetensors")
    done = swavg(
        "average", "-0", "-", "-o", "c.safetensors", cwd=pair,
        stdin="a\nb.safetensors\0b.safetensors\0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (pair / "c.safetensors").exists()


def test_empty_stdin_is_said(pair):
    done = swavg("average", "-", cwd=pair, stdin="\n")
    assert done.returncode == 2
    assert "named no paths" in done.stderr


def test_stdout_carries_the_bytes_of_the_file(pair):
    streamed = process("average", "a.safetensors", "b.safetensors", "-o", "-", cwd=pair, text=False)
    assert streamed.returncode == 0
    swavg("average", "a.safetensors", "b.safetensors", "-o", "c.safetensors", cwd=pair)
    assert streamed.stdout == (pair / "c.safetensors").read_bytes()


def test_strict_differences_come_as_a_table_of_all(tmp_path):
    save(tmp_path / "a.safetensors", state(1))
    other = state(2, extra=torch.ones(1))
    other["head.weight"] = torch.ones(4, 7)
    save(tmp_path / "b.safetensors", other)
    done = swavg("average", "a.safetensors", "b.safetensors", cwd=tmp_path)
    assert done.returncode == 3
    text = " ".join(done.stderr.split())
    for fact in ("extra", "missing in a.safetensors", "head.weight", "[3, 7]", "[4, 7]"):
        assert fact in text
    assert "--lenient" in text
    lenient = swavg("average", "a.safetensors", "b.safetensors", "--lenient", cwd=tmp_path)
    assert lenient.returncode == 0
    found = load(tmp_path / "averaged.safetensors")
    assert torch.equal(found["extra"], torch.ones(1))
    assert torch.equal(found["head.weight"], torch.ones(4, 7))
    assert "head.weight" in lenient.stderr


def test_missing_needs_lenient(pair):
    done = shell("swavg average a.safetensors b.safetensors --missing drop", pair)
    assert done.returncode == 2
    assert "add --lenient" in done.stderr


def test_numbers_refused_exit_with_six(tmp_path):
    save(tmp_path / "a.safetensors", {"x": torch.ones(2)})
    save(tmp_path / "b.safetensors", {"x": torch.tensor([1.0, float("inf")])})
    done = swavg("average", "a.safetensors", "b.safetensors", cwd=tmp_path)
    assert done.returncode == 6
    assert "b.safetensors: 'x' at [1] is Inf" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_float64_has_no_wider_dtype_to_offer(tmp_path):
    save(tmp_path / "a.safetensors", {"m": torch.tensor([1.7e308], dtype=torch.float64)})
    done = shell(
        "swavg average a.safetensors a.safetensors -w 1.5 1 --raw-weights -o b.st", tmp_path
    )
    assert done.returncode == 6
    assert "Use --allow-nonfinite" in done.stderr


def test_a_dry_run_prints_the_plan_and_writes_nothing(pair):
    done = swavg(
        "average", "a.safetensors", "b.safetensors", "--weights", "0.3", "0.7", "--exclude",
        "head.*", "--dry-run", cwd=pair,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for fact in (
        "0.3",
        "0.7",
        "a.safetensors",
        "averaged.safetensors",
        "head.weight",
        "2 averaged",
    ):
        assert fact in done.stdout
    assert not (pair / "averaged.safetensors").exists()


def test_a_dry_run_says_what_exists_and_what_may_be_wrong(pair):
    run = swavg("average", "a.safetensors", "-o", "b.safetensors", "-n", cwd=pair)
    assert run.returncode == 0
    said = " ".join(run.stderr.split())
    assert "warning one checkpoint: the average is a copy of a.safetensors" in said
    assert "warning b.safetensors: exists already. Use --force to replace it." in said
    assert "b.safetensors" in run.stdout
    run = swavg("average", "a.safetensors", "-o", "b.safetensors", "-n", "--json", cwd=pair)
    assert "Use --force" in json.loads(run.stdout)["warnings"][-1]
    forced = swavg("average", "a.safetensors", "-o", "b.safetensors", "-n", "--force", cwd=pair)
    assert "exists" not in forced.stderr


def test_json_is_the_whole_report(pair):
    args = ["average", "a.safetensors", "b.safetensors", "--json"]
    planned = json.loads(swavg(*args, "-n", cwd=pair).stdout)
    assert planned["seconds"] is None
    done = json.loads(swavg(*args, cwd=pair).stdout)
    assert done["output"] == "averaged.safetensors"
    assert done["tensors"] == {
        "averaged": 3,  "integer": 1, "copied": 0, "dropped": 0, "excluded": 0
    }  # fmt: skip
    assert [entry["weight"] for entry in done["inputs"]] == [0.5, 0.5]
    assert done["written"] == (pair / "averaged.safetensors").stat().st_size == planned["written"]


def test_quiet_prints_the_path_and_nothing_else(pair):
    done = swavg("average", "a.safetensors", "b.safetensors", "-q", cwd=pair)
    assert (done.stdout, done.stderr) == ("averaged.safetensors\n", "")


def test_force_replaces_and_nothing_else_does(pair):
    args = ["average", "a.safetensors", "b.safetensors", "-o", "c.safetensors"]
    (pair / "c.safetensors").write_text("mine")
    refused = swavg(*args, cwd=pair)
    assert refused.returncode == 7
    assert "--force" in refused.stderr
    assert (pair / "c.safetensors").read_text() == "mine"
    assert swavg(*args, "--force", cwd=pair).returncode == 0
    assert torch.equal(load(pair / "c.safetensors")["body.bias"], mean(pair))


def test_a_file_goes_into_an_existing_folder(pair):
    (pair / "out").mkdir()
    done = swavg("average", "a.safetensors", "b.safetensors", "-o", "out", cwd=pair)
    assert done.stdout == "out/averaged.safetensors\n"


def test_a_key_that_a_file_lacks_names_those_it_has(tmp_path):
    torch.save({"state_dict": state(1), "state_dict_ema": state(2)}, tmp_path / "a.pt")
    done = swavg("average", "a.pt", "--key", "nothing", cwd=tmp_path)
    assert done.returncode == 4
    assert "state_dict_ema" in done.stderr
    chosen = swavg("average", "a.pt", "-o", "c.safetensors", cwd=tmp_path)
    assert "state_dict_ema" in chosen.stderr
    assert torch.equal(load(tmp_path / "c.safetensors")["body.bias"], state(1)["body.bias"])
    ema = swavg("average", "a.pt", "--key", "state_dict_ema", "-o", "e.safetensors", cwd=tmp_path)
    assert ema.returncode == 0, ema.stderr
    assert torch.equal(load(tmp_path / "e.safetensors")["body.bias"], state(2)["body.bias"])


def test_the_literal_call_of_the_readme_runs(pair):
    for name in "ab":
        (pair / f"{name}.safetensors").rename(pair / name)
    done = swavg("average", "a", "b", "--weights", "0.5", "0.5", "-o", "c", cwd=pair)
    assert done.returncode == 0, done.stderr
    assert load(pair / "c")["body.bias"].shape == (7,)


def test_a_series_from_ls_through_head_is_averaged(tmp_path):
    series(tmp_path / "ckpts", 7)
    shell = f"ls ckpts/*.safetensors | head -5 | {' '.join(SWAVG)} average - -o avg.safetensors -q"
    done = subprocess.run(
        shell, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "avg.safetensors\n"
    recorded = json.loads(
        json.loads(_header(tmp_path / "avg.safetensors"))["__metadata__"]["swavg"]
    )
    assert recorded["inputs"] == [f"step-{n}00.safetensors" for n in range(1, 6)]


def _header(path):
    data = Path(path).read_bytes()
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


def test_a_device_without_torch_says_what_to_install(pair):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from swavg.cli import main\n"
        "main(['average', 'a.safetensors', 'b.safetensors', '--device', 'cuda'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=pair, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install torch" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("x" * 300 + ".safetensors", "File name too long"),
        ("loop", "is a link that leads back to itself"),
        ("closed/x.safetensors", "Permission denied"),
    ],
)
def test_impossible_outputs_are_refused_before_anything_is_read(pair, output, said):
    os.symlink("loop", pair / "loop")
    (pair / "closed").mkdir(mode=0o000)
    as_user = "setpriv --bounding-set=-all --inh-caps=-all" if os.geteuid() == 0 else ""
    done = shell(
        f"{as_user} {' '.join(SWAVG)} average a.safetensors b.safetensors -o {output} --force", pair
    )
    assert done.returncode == 5
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def folder(path, value):
    """A folder of two shards."""
    path.mkdir()
    home = {}
    for shard in (1, 2):
        name = f"model-0000{shard}-of-00002.safetensors"
        save_file({f"l{shard}": torch.full((4,), value)}, path / name)
        home[f"l{shard}"] = name
    index = {"metadata": {}, "weight_map": home}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.safetensors", "sub", "deep/er"])
def test_no_output_lies_in_a_folder_that_is_an_input(tmp_path, name):
    folder(tmp_path / "one", 1.0)
    two = folder(tmp_path / "two", 3.0)
    (two / "deep").mkdir()
    before = sorted(two.rglob("*"))
    done = shell(f"swavg average one two -o two/{name}", tmp_path)
    assert done.returncode == 5
    assert "lies in the input two" in done.stderr
    assert sorted(two.rglob("*")) == before


def test_shards_without_an_index_are_called_so(tmp_path):
    one = folder(tmp_path / "one", 1.0)
    (one / "model.safetensors.index.json").unlink()
    done = shell("swavg average one one -o x", tmp_path)
    assert (done.returncode, "one: has 2 shards but no index" in done.stderr) == (4, True)


@pytest.mark.slow
def test_shards_need_a_folder_and_take_the_default_name_for_one(pair):
    done = shell("swavg average a.safetensors b.safetensors --max-shard-size 100", pair)
    assert (done.returncode, done.stdout) == (0, "averaged\n")
    assert (pair / "averaged" / "model.safetensors.index.json").exists()
    done = shell("swavg average a.safetensors b.safetensors --max-shard-size 100 -o - | cat", pair)
    assert "leave --max-shard-size out" in done.stderr


def adapters(folder, *alphas):
    """Adapters as PEFT writes them, which differ in their alpha."""
    for i, alpha in enumerate(alphas):
        tensors = {"m.l.lora_A.weight": torch.randn(2, 4), "m.l.lora_B.weight": torch.randn(3, 2)}
        save(folder / f"a{i}" / "adapter_model.safetensors", tensors)
        config = {"r": 2, "lora_alpha": alpha, "revision": "main"}
        (folder / f"a{i}" / "adapter_config.json").write_text(json.dumps(config))


def test_the_way_out_for_adapters_works(tmp_path):
    adapters(tmp_path, 2, 8)
    refused = swavg("average", "a0", "a1", "-o", "o", cwd=tmp_path)
    assert refused.returncode == 3
    assert "lora_alpha is 2 in a0 and 8 in a1" in refused.stderr
    assert "--lora exact writes the average of what they do" in refused.stderr
    done = swavg("average", "a0", "a1", "-o", "o", "--lora", "exact", cwd=tmp_path)
    assert done.returncode == 0
    assert "warning" not in done.stderr
    assert "lora: exact: factors of rank 2 + 2 side by side have rank 4" in done.stderr
    config = json.loads((tmp_path / "o" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 4)
    state = load(tmp_path / "o" / "adapter_model.safetensors")
    one, two = (load(tmp_path / name / "adapter_model.safetensors") for name in ("a0", "a1"))
    product = state["m.l.lora_B.weight"] @ state["m.l.lora_A.weight"]
    expected = sum(
        scale / 2 * (each["m.l.lora_B.weight"] @ each["m.l.lora_A.weight"])
        for each, scale in ((one, 1), (two, 4))
    )
    assert torch.allclose(product, expected, atol=1e-6)


def test_adapters_of_one_scale_are_averaged_with_a_warning_that_says_what_to_use(tmp_path):
    adapters(tmp_path, 4, 4)
    done = swavg("average", "a0", "a1", "-o", "o", "--no-geometry", cwd=tmp_path)
    assert done.returncode == 0
    assert "is not the mean of their products" in done.stderr
    assert "--lora exact writes the average" in done.stderr


def test_integers_that_are_no_counters_can_be_taken_as_the_error_says(tmp_path):
    for i, name in enumerate("ab"):
        save(tmp_path / f"{name}.safetensors", {"w": torch.ones(2), "ids": torch.tensor([i, 7])})
    command = ["average", "a.safetensors", "b.safetensors", "-o", "o.safetensors"]
    refused = swavg(*command, cwd=tmp_path)
    assert refused.returncode == 3
    assert "'ids' (int64 [2]) differs" in refused.stderr
    assert "--integers last, first, max or mean" in refused.stderr
    assert not (tmp_path / "o.safetensors").exists()
    assert swavg(*command, "--integers", "max", cwd=tmp_path).returncode == 0
    assert load(tmp_path / "o.safetensors")["ids"].tolist() == [1, 7]


@pytest.mark.parametrize("order", [("f32", "bf16"), ("bf16", "f32")])
def test_dtypes_that_differ_are_averaged_by_the_option_that_the_error_names(tmp_path, order):
    one, other = torch.linspace(-3, 3, 7), torch.linspace(1, 40, 7).bfloat16()
    save(tmp_path / "f32.safetensors", {"w": one})
    save(tmp_path / "bf16.safetensors", {"w": other})
    line = ["average", *(f"{name}.safetensors" for name in order), "-o", "o.safetensors"]
    refused = swavg(*line, cwd=tmp_path)
    assert refused.returncode == 3
    hint = refused.stderr.split("Average them with ")[1].split()[0].rstrip(".")
    assert swavg(*line, hint, cwd=tmp_path).returncode == 0
    mean = (one.double() + other.double()) / 2
    found = load(tmp_path / "o.safetensors")["w"]
    assert torch.equal(found, mean.to(one.dtype if order[0] == "f32" else other.dtype))
    assert swavg(*line, hint, "--dtype", "float32", "--force", cwd=tmp_path).returncode == 0
    assert torch.equal(load(tmp_path / "o.safetensors")["w"], mean.float())
