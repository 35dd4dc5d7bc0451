"""``swavg ema``."""

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
