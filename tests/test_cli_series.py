"""The commands over series, as whole processes."""

import json
import subprocess
import sys

import pytest
import torch
from checkpoints import load, save, state

STEPS = (10, 20, 30, 40, 100)


def swavg(*args, cwd, stdin=None):
    return subprocess.run(
        [sys.executable, "-m", "swavg", *map(str, args)],
        cwd=cwd, input=stdin, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A run of five checkpoints, whose names sort differently from their steps."""
    for step in STEPS:
        save(tmp_path / "run" / f"step_{step}-val_loss={1 / step:.3f}.safetensors", state(step))
    return tmp_path


def bias(steps, weights=None):
    weights = weights or [1 / len(steps)] * len(steps)
    return sum(w * state(s)["body.bias"].double() for s, w in zip(steps, weights, strict=True))


def assert_bias(path, expected):
    torch.testing.assert_close(load(path)["body.bias"].double(), expected, rtol=1e-6, atol=1e-7)


def done(*args, cwd, **more):
    finished = swavg(*args, cwd=cwd, **more)
    assert finished.returncode == 0, finished.stderr
    return finished


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ([], STEPS),
        (["--last", "2"], (40, 100)),
        (["--from-step", "20", "--to-step", "40"], (20, 30, 40)),
        (["--every", "20"], (20, 40, 100)),
        (["--best", "2", "--metric", "val_loss"], (40, 100)),
        (["--best", "2", "--metric", "val_loss", "--mode", "max"], (10, 20)),
        (["--last", "9", "--at-most"], STEPS),
        (["--pattern", "step_1*"], (10, 100)),
    ],
)
def test_average_takes_what_is_chosen_from_a_folder(run, options, steps):
    done("average", "run", *options, "-o", "out.safetensors", cwd=run)
    assert_bias(run / "out.safetensors", bias(steps))


def test_asking_for_more_than_there_are_is_an_error(run):
    finished = swavg("average", "run", "--last", "9", cwd=run)
    assert finished.returncode == 2
    assert "9" in finished.stderr
    assert "5" in finished.stderr
    assert "--at-most" in finished.stderr


def test_weights_stay_with_the_paths_they_were_given_for(run):
    paths = [f"run/step_{step}-val_loss={1 / step:.3f}.safetensors" for step in (100, 10)]
    done("average", *paths, "--weights", "0.9", "0.1", "-o", "out.safetensors", cwd=run)
    assert_bias(run / "out.safetensors", bias((100, 10), (0.9, 0.1)))


def test_paths_in_another_order_than_their_steps_are_put_in_order_and_said(run):
    paths = [f"run/step_{step}-val_loss={1 / step:.3f}.safetensors" for step in (100, 10)]
    finished = done("ema", *paths, "--decay", "0.9", "-o", "out.safetensors", cwd=run)
    assert "order" in finished.stderr
    assert_bias(run / "out.safetensors", bias((10, 100), (0.9, 0.1)))
    done("ema", *paths, "--decay", "0.9", "--keep-order", "-o", "k.safetensors", cwd=run)
    assert_bias(run / "k.safetensors", bias((100, 10), (0.9, 0.1)))


def test_the_literal_ema_call_runs(run):
    files = sorted((run / "run").iterdir())
    done("ema", *files, "--decay", "0.99", cwd=run)
    weights = [0.99**4, *(0.01 * 0.99 ** (4 - i) for i in range(1, 5))]
    out = next(run.glob("averaged*"))
    assert_bias(out, bias(STEPS, weights))


def test_a_half_life_in_steps_counts_the_gaps_and_says_so(run):
    finished = done(
        "ema", "run", "--half-life", "30steps", "--last", "2", "-o", "o.safetensors", cwd=run
    )
    assert "counted in steps" in finished.stderr
    assert_bias(run / "o.safetensors", bias((40, 100), (0.25, 0.75)))


def test_an_ema_goes_on_where_it_ended(run):
    common = ["--decay", "0.8", "--dtype", "float64"]
    done("ema", "run", *common, "-o", "whole.safetensors", cwd=run)
    done("ema", "run", *common, "--to-step", "30", "-o", "early.safetensors", cwd=run)
    done(
        "ema", "run", "--decay", "0.8", "--resume", "early.safetensors", "-o", "late.safetensors",
        cwd=run,
    )  # fmt: skip
    whole, late = load(run / "whole.safetensors"), load(run / "late.safetensors")
    torch.testing.assert_close(late["body.bias"], whole["body.bias"], rtol=1e-14, atol=1e-15)


def test_update_and_its_window(run):
    paths = {s: f"run/step_{s}-val_loss={1 / s:.3f}.safetensors" for s in STEPS}
    done("average", "run", "--to-step", "30", "-o", "avg.safetensors", cwd=run)
    done("update", "avg.safetensors", paths[40], "-o", "four.safetensors", cwd=run)
    assert_bias(run / "four.safetensors", bias((10, 20, 30, 40)))
    done(
        "update", "four.safetensors", "--add", paths[100], "--drop", paths[10],
        "-o", "moved.safetensors", cwd=run,
    )  # fmt: skip
    assert_bias(run / "moved.safetensors", bias((20, 30, 40, 100)))
    done("average", "run", "--last", "5", "-o", "all.safetensors", cwd=run)
    done("window", "avg.safetensors", "all.safetensors", "-o", "w.safetensors", cwd=run)
    assert_bias(run / "w.safetensors", bias((40, 100)))


def test_a_sweep_writes_an_output_for_each_recipe_and_prints_their_paths(run):
    finished = done(
        "sweep", "run", "-r", "uniform:last=2", "-r", "ema:half-life=30steps,last=2", "-d", "out",
        cwd=run,
    )  # fmt: skip
    names = ["uniform-last-2.safetensors", "ema-half-life-30steps-last-2.safetensors"]
    assert finished.stdout.split() == [f"out/{name}" for name in names]
    assert_bias(run / "out" / names[0], bias((40, 100)))
    assert_bias(run / "out" / names[1], bias((40, 100), (0.25, 0.75)))
    again = swavg("sweep", "run", "-r", "uniform:last=2", "-d", "out", cwd=run)
    assert again.returncode == 5


def test_posthoc_makes_several_widths_at_once(run):
    finished = done(
        "posthoc", "run", "--profile", "0.1", "--sigma-rel", "0.1", "--sigma-rel", "0.15",
        "-d", "emas", cwd=run,
    )  # fmt: skip
    assert finished.stdout.split() == [
        "emas/posthoc-0.1.safetensors", "emas/posthoc-0.15.safetensors"
    ]  # fmt: skip
    assert_bias(run / "emas/posthoc-0.1.safetensors", bias((100,)))


@pytest.mark.parametrize(
    "args",
    [
        ["ema", "run", "--half-life", "30steps"],
        ["average", "run"],
        ["sweep", "run", "-r", "uniform:last=2", "-d", "out"],
        ["posthoc", "run", "--profile", "0.1", "--sigma-rel", "0.15"],
    ],
)
def test_a_dry_run_draws_the_weights_and_writes_nothing(run, args):
    finished = done(*args, "--dry-run", cwd=run)
    assert "█" in finished.stdout
    assert "equal checkpoints" in finished.stdout
    assert "newest" in finished.stdout
    assert sorted(path.name for path in run.iterdir()) == ["run"]
    as_json = json.loads(done(*args, "--dry-run", "--json", cwd=run).stdout)
    assert as_json["seconds"] is None
    assert len(as_json["inputs"]) >= 2


def test_an_input_that_looks_wrong_is_a_warning(tmp_path):
    same = {"x": torch.randn(300) + 3}
    save(tmp_path / "a.safetensors", same)
    save(tmp_path / "b.safetensors", same)
    args = ["average", "a.safetensors", "b.safetensors"]
    assert "b.safetensors looks identical to a" in done(*args, cwd=tmp_path).stderr
    quiet = done(*args, "--no-geometry", "--force", cwd=tmp_path)
    assert "identical" not in quiet.stderr


def test_batch_norm_statistics_are_pointed_out(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    for name in "ab":
        torch.save(model.state_dict(), tmp_path / f"{name}.pt")
    finished = done("average", "a.pt", "b.pt", "--no-geometry", cwd=tmp_path)
    assert "swavg bn averaged.pt --model" in " ".join(finished.stderr.split())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["ema", "run"], "Give one of --decay, --half-life and --span"),
        (["ema", "run", "--decay", "1.5"], "1.5"),
        (["update", "x"], "Give the new checkpoints"),
        (["sweep", "run", "-r", "uniform"], "-d OUTDIR"),
        (["sweep", "run", "-r", "uniform", "-r", "uniform", "-d", "o"], "Two outputs"),
        (["posthoc", "run", "--sigma-rel", "0.1", "--sigma-rel", "0.2"], "-d OUTDIR"),
        (["posthoc", "run", "--sigma-rel", "0.5", "--profile", "0.1"], "0.5"),
    ],
)
def test_wrong_calls_are_usage_errors(run, args, said):
    finished = swavg(*args, cwd=run)
    assert finished.returncode == 2
    assert said in " ".join(finished.stderr.split())
    assert "Traceback" not in finished.stderr


def test_the_weights_of_a_folder_go_by_step_and_not_by_name(tmp_path):
    save(tmp_path / "f" / "a-step-200.safetensors", state(200))
    save(tmp_path / "f" / "b-step-100.safetensors", state(100))
    done("average", "f", "--weights", "1", "0", "-o", "o.safetensors", cwd=tmp_path)
    assert_bias(tmp_path / "o.safetensors", bias((100,)))
