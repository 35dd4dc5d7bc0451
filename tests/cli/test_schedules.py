"""Weights that stand for a schedule, or follow a metric, from the command line."""

import json

import pytest
from command_line import done, swavg
from run_of_five import STEPS, assert_bias, bias

from swavg import weights


def test_an_annealing_by_name_and_from_a_file(run):
    done("average", "run", "--anneal", "1-sqrt", "-o", "a.safetensors", cwd=run)
    factors = [1 - (i / 5) ** 0.5 for i in range(1, 5)]
    assert_bias(run / "a.safetensors", bias(STEPS, weights.anneal(factors)))
    (run / "factors.txt").write_text("\n".join(map(str, factors)) + "\n")
    done("average", "run", "--anneal", "factors.txt", "-o", "b.safetensors", cwd=run)
    assert_bias(run / "b.safetensors", bias(STEPS, weights.anneal(factors)))
    done("average", "run", "--last", 2, "--anneal", "linear", "-o", "c.safetensors", cwd=run)
    assert_bias(run / "c.safetensors", bias(STEPS[-2:]))
    found = json.loads(done("inspect", "a.safetensors", "--json", cwd=run).stdout)
    assert found["recipe"]["method"] == "anneal"
    assert found["recipe"]["anneal"] == "1-sqrt"


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("1\n0.5\n", 2, "has 2 factors, and 5 checkpoints have 4 updates"),
        ("1\nx\n", 2, "is no list of factors"),
        ("x" * 5000, 2, "x.\n"),
        ("1\n0.5\n0.6\n0\n", 2, "0.6 follows 0.5"),
        (None, 4, "Give linear, cosine, 1-sqrt, or a file of factors"),
    ],
)
def test_factors_that_do_not_fit(run, text, code, said):
    if text is not None:
        (run / "factors").write_text(text)
    found = swavg("average", "run", "--anneal", "factors", "-o", "a.safetensors", cwd=run)
    assert (found.returncode, said in found.stderr) == (code, True)


def test_a_schedule_that_is_not_there_is_one_that_was_meant(run):
    found = swavg("average", "run", "--anneal", "cosin", "-o", "a.safetensors", cwd=run)
    assert found.stderr == "error cosin: no such file\n      Did you mean 'cosine'?\n"


def test_weights_by_a_metric(run):
    losses = [float(f"{1 / step:.3f}") for step in STEPS]
    args = ["average", "run", "--by-metric", "val_loss", "--temperature", "0.05"]
    done(*args, "-o", "a.safetensors", cwd=run)
    found = weights.by_metric(losses, lower_is_better=True, temperature=0.05)
    assert_bias(run / "a.safetensors", bias(STEPS, found))
    done(*args, "--mode", "max", "-o", "b.safetensors", cwd=run)
    found = weights.by_metric(losses, lower_is_better=False, temperature=0.05)
    assert_bias(run / "b.safetensors", bias(STEPS, found))
    done(*args, "--best", 2, "--metric", "val_loss", "-o", "c.safetensors", cwd=run)
    found = weights.by_metric(losses[-2:], lower_is_better=True, temperature=0.05)
    assert_bias(run / "c.safetensors", bias(STEPS[-2:], found))


def test_a_metric_from_a_file(run):
    (run / "log.csv").write_text("step,acc\n" + "".join(f"{s},{s / 100}\n" for s in STEPS[1:]))
    args = ["average", "run", "--by-metric", "acc", "--metrics", "log.csv", "-o", "a.safetensors"]
    finished = done(*args, cwd=run)
    found = weights.by_metric([s / 100 for s in STEPS[1:]], lower_is_better=False)
    assert_bias(run / "a.safetensors", bias(STEPS[1:], found))
    assert "left out for want of acc" in finished.stderr


def test_a_metric_that_nothing_has(run):
    found = swavg("average", "run", "--by-metric", "val_los", "-o", "a.safetensors", cwd=run)
    assert found.returncode == 2
    assert "Did you mean 'val_loss'?" in found.stderr


def test_a_bias_corrected_ema(run):
    done("ema", "run", "--schedule", "bema", "-o", "a.safetensors", cwd=run)
    assert_bias(run / "a.safetensors", bias(STEPS, weights.bema(STEPS)))
    found = swavg("ema", "run", "--resume", "a.safetensors", "--decay", "0.9", cwd=run)
    assert found.returncode == 4
    assert "is no ema" in found.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["average", "run", "--anneal", "linear", "--weights", "1", "0", "0", "0", "0"],
        ["average", "run", "--anneal", "linear", "--by-metric", "val_loss"],
        ["average", "run", "--temperature", "2"],
        ["average", "run", "--anneal", "linear", "--normalize"],
        ["ema", "run", "--schedule", "bema", "--decay", "0.9"],
        ["ema", "run", "--schedule", "bema", "--warmup", "yolo"],
    ],
)
def test_what_does_not_go_together(run, args):
    found = swavg(*args, "-o", "a.safetensors", cwd=run)
    assert found.returncode == 2
    assert not (run / "a.safetensors").exists()


@pytest.mark.parametrize(
    "args",
    [
        ["average", "run", "--anneal", "linear"],
        ["average", "run", "--by-metric", "val_loss"],
        ["ema", "run", "--schedule", "bema"],
    ],
)
def test_a_note_on_the_series_is_told_once(run, args):
    (run / "run" / "best.safetensors").write_bytes(b"")
    finished = done(*args, "-o", "a.safetensors", cwd=run)
    assert finished.stderr.count("best.safetensors") == 1
