"""``swavg sweep``."""

from command_line import done, swavg
from run_of_five import assert_bias, bias


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
    assert again.returncode == 7
