"""``swavg update`` and ``swavg window``."""

from command_line import done
from run_of_five import STEPS, assert_bias, bias


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
