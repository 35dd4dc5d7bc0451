"""What several outputs have to say is said once."""

import pytest
import torch
from checkpoints import save
from command_line import done

RECIPES = ["-r", "uniform:last=2", "-r", "uniform:last=3", "-r", "ema:decay=0.5"]


@pytest.fixture
def run(tmp_path):
    """Of four checkpoints, with batch-norm statistics and integers; only the first has ``y``."""
    for step in (1, 2, 3, 4):
        tensors = {
            "x": torch.linspace(1, 2, 50) + step / 1000,
            "n.running_mean": torch.full((3,), 1 + step / 1000),
            "ids": torch.tensor([step, 1]),
        }
        more = {"y": torch.ones(1)} if step == 2 else {}
        save(tmp_path / "run" / f"step-{step}.safetensors", tensors | more)
    return tmp_path


def said(run, *args):
    """Notes and warnings."""
    lines = done(*args, "--integers", "last", cwd=run).stderr.splitlines()
    return [line for line in lines if line.startswith(("note", "warning"))]


def test_what_all_outputs_have_is_said_once(run):
    common = ["--from-step", "3", "-d", "out"]
    assert said(run, "sweep", "run", "-r", "uniform:last=2", "-r", "ema:decay=0.5", *common) == [
        "note in both: integer tensors that differ: took the last of ids",
        "warning in both: batch-norm statistics were averaged (n.running_mean): before judging the"
        " result recompute them with: swavg bn OUT --model ... --data ...",
    ]


def test_of_three_the_number_is_said_and_of_some_the_names(run):
    shown = done(
        "sweep", "run", *RECIPES, "--lenient", "--integers", "last", "-d", "out", cwd=run
    ).stderr.splitlines()
    assert "note in all 3: integer tensors that differ: took the last of ids" in shown
    assert sum("batch-norm" in line for line in shown) == 1
    # Of the last two none has y.
    assert [line for line in shown if line.startswith("in ")] == [
        "in uniform-last-3.safetensors:",
        "in ema-decay-0.5.safetensors:",
    ]


def test_of_one_output_the_command_names_it(run):
    both = ["posthoc", "run", "--profile", "0.1", "--sigma-rel", "0.12", "--lenient"]
    (*_, last) = said(run, *both, "-o", "e.safetensors")
    assert last.endswith("swavg bn e.safetensors --model ... --data ...")
    (*_, last) = said(run, *both, "--sigma-rel", "0.15", "-d", "emas")
    assert last.endswith("swavg bn OUT --model ... --data ...")
    assert last.startswith("warning in both: batch-norm statistics")
    (*_, last) = said(run, "ema", "run", "--decay", "0.5", "--lenient", "-o", "f.safetensors")
    assert last.endswith("swavg bn f.safetensors --model ... --data ...")


def test_a_dry_run_has_the_notes_of_all_outputs(run):
    shown = done("sweep", "run", *RECIPES, "--lenient", "-d", "out", "-n", cwd=run).stderr
    assert len(shown.splitlines()) == len({*shown.splitlines()})
