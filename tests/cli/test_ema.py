"""``swavg ema``."""

import pytest
import torch
from checkpoints import load
from command_line import done
from run_of_five import STEPS, assert_bias, bias


def test_the_literal_ema_call_runs(run):
    files = sorted((run / "run").iterdir())
    done("ema", *files, "--decay", "0.99", cwd=run)
    weights = [0.99**4, *(0.01 * 0.99 ** (4 - i) for i in range(1, 5))]
    assert_bias(run / "ema.safetensors", bias(STEPS, weights))


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


COPY = "is as good as a copy of it"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        # 60 steps from the last but one to the last.
        (["--half-life", "2"],
         "all of the weight is that of step_100-val_loss=0.010.safetensors: with a decay of"
         " 0.70710678 per step the EMA of these 5 is as good as a copy of it."
         " --half-life 3checkpoints, say, counts checkpoints instead of steps"),
        (["--decay", "0.001"],
         "0.999 of the weight is that of step_100-val_loss=0.010.safetensors: with a decay of 0.001"
         " per checkpoint the EMA of these 5 is as good as a copy of it"),
        (["--decay", "0.999"],
         "0.996 of the weight is that of step_10-val_loss=0.100.safetensors: with a decay of 0.999"
         " per checkpoint the EMA of these 5 is as good as a copy of it. --debias starts from zero,"
         " instead of from the first checkpoint"),
        (["--decay", "0.9", "--warmup", "yolo"], "with the warm-up yolo the EMA"),
    ],
)  # fmt: skip
def test_an_ema_that_is_as_good_as_a_copy_warns_and_names_a_way_out(run, args, said):
    told = done("ema", "run", *args, "-o", "o.safetensors", cwd=run).stderr
    (warning,) = [line for line in told.splitlines() if COPY in line]
    assert said in warning.removeprefix("warning ")


@pytest.mark.parametrize(
    "args",
    [
        ["--half-life", "3checkpoints"],
        ["--half-life", "30"],
        ["--decay", "0.999", "--debias"],
        ["--decay", "0.9"],
    ],
)
def test_an_ema_of_several_does_not_warn(run, args):
    told = done("ema", "run", *args, "-o", "o.safetensors", cwd=run).stderr
    assert COPY not in told
    # What goes on with an EMA gives one more checkpoint its small weight.
    done("ema", "run", "--to-step", "40", *args, "-o", "early.safetensors", cwd=run)
    later = done("ema", "run", *args, "--resume", "early.safetensors", "-o", "l.st", cwd=run)
    assert COPY not in later.stderr


def test_a_sweep_warns_of_the_ema_that_is_as_good_as_a_copy(run):
    recipes = ["-r", "ema:half-life=2", "-r", "ema:half-life=30"]
    told = done("sweep", "run", *recipes, "-d", "out", cwd=run).stderr
    assert told.count(COPY) == 1
