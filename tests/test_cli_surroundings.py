"""What surrounds a command: closed and full streams, odd names, signals, and inputs' folders."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from checkpoints import load, save, state
from safetensors.torch import save_file

SWAVG = f"{sys.executable} -m swavg average"


@pytest.fixture
def pair(tmp_path):
    for seed, name in ((1, "a"), (2, "b")):
        save(tmp_path / f"{name}.safetensors", state(seed))
    return tmp_path


def shell(command, cwd, **more):
    """A shell's view: redirections are the point here."""
    return subprocess.run(
        ["bash", "-c", command], cwd=cwd, capture_output=True, text=True, timeout=60, **more
    )


def expected(folder):
    one, two = load(folder / "a.safetensors"), load(folder / "b.safetensors")
    return ((one["body.bias"].double() + two["body.bias"].double()) / 2).float()


@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full", "<&-"])
def test_nobody_listening_to_messages_stops_nothing(pair, redirected):
    done = shell(f"{SWAVG} a.safetensors b.safetensors -o c.safetensors {redirected}", pair)
    assert (done.returncode, done.stdout) == (0, "c.safetensors\n")
    assert torch.equal(load(pair / "c.safetensors")["body.bias"], expected(pair))


@pytest.mark.parametrize("more", ["", "--json"])
def test_a_full_standard_output_is_told(pair, more):
    done = shell(f"{SWAVG} a.safetensors b.safetensors -o c.st {more} >/dev/full", pair)
    assert done.returncode == 5
    assert "standard output: cannot be written: No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_standard_output_takes_no_bytes(pair):
    done = shell(f"{SWAVG} a.safetensors b.safetensors -o - >&-", pair)
    assert done.returncode == 2
    assert "Standard output is closed" in done.stderr
    done = shell(f"{SWAVG} a.safetensors b.safetensors -o c.safetensors >&-", pair)
    assert done.returncode == 0
    assert torch.equal(load(pair / "c.safetensors")["body.bias"], expected(pair))


def test_a_closed_standard_input_names_no_paths(pair):
    done = shell(f"{SWAVG} - <&-", pair)
    assert done.returncode == 2
    assert "standard input named no paths" in done.stderr


def test_a_shell_gets_its_completions(pair):
    done = shell(f"_SWAVG_COMPLETE=bash_source {sys.executable} -m swavg", pair)
    assert done.returncode == 0
    assert "_swavg_completion" in done.stdout


def test_names_are_bytes_to_the_system(pair):
    done = shell(
        f"LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 {SWAVG} a.safetensors b.safetensors"
        " -o ü.safetensors -q",
        pair,
    )
    assert done.returncode == 0, done.stderr
    assert (pair / "ü.safetensors").exists()


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
    done = shell(f"{as_user} {SWAVG} a.safetensors b.safetensors -o {output} --force", pair)
    assert done.returncode == 5
    assert said in done.stderr
    assert "Traceback" not in done.stderr


LATE = """
import os, signal, sys
from swavg import publish
from swavg.cli import main
sync = publish._sync_folder
def interrupted(folder):
    os.kill(os.getpid(), signal.{name})
    sync(folder)
publish._sync_folder = interrupted
main(sys.argv[1:])
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_after_the_rename_comes_too_late(pair, name):
    command = [sys.executable, "-c", LATE.format(name=name), "average"]
    done = subprocess.run(
        [*command, "a.safetensors", "b.safetensors", "-o", "c.safetensors"],
        cwd=pair,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "c.safetensors\n")
    assert torch.equal(load(pair / "c.safetensors")["body.bias"], expected(pair))


EARLY = LATE.replace("sync = publish._sync_folder", "sync = publish._keep_mode").replace(
    "publish._sync_folder = interrupted", "publish._keep_mode = lambda *_: interrupted(None)"
)


def test_a_signal_before_the_rename_leaves_nothing(pair):
    done = subprocess.run(
        [sys.executable, "-c", EARLY.format(name="SIGINT"), "average", "a.safetensors",
         "b.safetensors", "-o", "c.safetensors"],
        cwd=pair, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 130
    assert sorted(os.listdir(pair)) == ["a.safetensors", "b.safetensors"]
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


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


@pytest.mark.parametrize("name", ["model.safetensors", "sub", "deep/er"])
def test_no_output_lies_in_a_folder_that_is_an_input(tmp_path, name):
    folder(tmp_path / "one", 1.0)
    two = folder(tmp_path / "two", 3.0)
    (two / "deep").mkdir()
    before = sorted(two.rglob("*"))
    done = shell(f"{SWAVG} one two -o two/{name}", tmp_path)
    assert done.returncode == 5
    assert "lies in the input two" in done.stderr
    assert sorted(two.rglob("*")) == before


def test_shards_without_an_index_and_distributed_checkpoints_are_called_so(tmp_path):
    one = folder(tmp_path / "one", 1.0)
    (one / "model.safetensors.index.json").unlink()
    done = shell(f"{SWAVG} one one -o x", tmp_path)
    assert (done.returncode, "one: has 2 shards but no index" in done.stderr) == (4, True)
    spread = tmp_path / "spread"
    spread.mkdir()
    for name in (".metadata", "__0_0.distcp"):
        (spread / name).write_bytes(b"x")
    done = shell(f"{SWAVG} spread spread -o x", tmp_path)
    assert (done.returncode, "is a distributed checkpoint" in done.stderr) == (4, True)
    assert "dcp_to_torch_save" in done.stderr


def test_shards_need_a_folder_and_take_the_default_name_for_one(pair):
    done = shell(f"{SWAVG} a.safetensors b.safetensors --max-shard-size 100", pair)
    assert (done.returncode, done.stdout) == (0, "averaged\n")
    assert (pair / "averaged" / "model.safetensors.index.json").exists()
    done = shell(f"{SWAVG} a.safetensors b.safetensors --max-shard-size 100 -o - | cat", pair)
    assert "leave --max-shard-size out" in done.stderr


def test_missing_needs_lenient(pair):
    done = shell(f"{SWAVG} a.safetensors b.safetensors --missing drop", pair)
    assert done.returncode == 2
    assert "add --lenient" in done.stderr


@pytest.mark.parametrize("written", ["-w0.25 0.75", "-w=0.25,0.75", "--weights '0.25 0.75'"])
def test_weights_may_be_written_in_other_ways(pair, written):
    done = shell(f"{SWAVG} a.safetensors b.safetensors {written} -n --json", pair)
    assert done.returncode == 0, done.stderr
    assert [entry["weight"] for entry in json.loads(done.stdout)["inputs"]] == [0.25, 0.75]


def test_the_flag_for_nul_is_no_weight(pair):
    done = shell(f"{SWAVG} a.safetensors b.safetensors -w -0 1", pair)
    assert done.returncode == 2
    assert "write the weight as 0" in done.stderr


def test_inf_that_all_inputs_share_stays_and_is_told(tmp_path):
    for name in "ab":
        save(tmp_path / f"{name}.safetensors", {"m": torch.tensor([1.0, float("-inf")])})
    done = shell(f"{SWAVG} a.safetensors b.safetensors -o c.safetensors", tmp_path)
    assert done.returncode == 0
    assert "NaN or Inf in the result: m" in done.stderr
    assert load(tmp_path / "c.safetensors")["m"].tolist() == [1.0, float("-inf")]


def test_float64_has_no_wider_dtype_to_offer(tmp_path):
    save(tmp_path / "a.safetensors", {"m": torch.tensor([1.7e308], dtype=torch.float64)})
    done = shell(f"{SWAVG} a.safetensors a.safetensors -w 1.5 1 --raw-weights -o b.st", tmp_path)
    assert done.returncode == 6
    assert "Use --allow-nonfinite" in done.stderr


def test_what_all_inputs_say_is_said_once(tmp_path):
    for i in range(3):
        inner = {"w": torch.full((2,), float(i))}
        torch.save({"state_dict": inner, "state_dict_ema": inner}, tmp_path / f"{i}.pt")
    done = shell(f"{SWAVG} 0.pt 1.pt 2.pt -o c.pt", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("there is also 'state_dict_ema'") == 1


def test_tensors_treated_alike_share_a_row(tmp_path):
    x = {"x": torch.ones(2)}
    save(tmp_path / "a.safetensors", x)
    save(tmp_path / "b.safetensors", x | {f"y{i}": torch.ones(1) for i in range(30)})
    done = shell(f"{SWAVG} a.safetensors b.safetensors --lenient -o c.st", tmp_path)
    assert done.returncode == 0
    assert done.stderr.count("missing in a.safetensors") == 1
    assert "27 more" in done.stderr
