"""``swavg posthoc``."""

from command_line import done
from run_of_five import assert_bias, bias


def test_posthoc_makes_several_widths_at_once(run):
    finished = done(
        "posthoc", "run", "--profile", "0.1", "--sigma-rel", "0.1", "--sigma-rel", "0.15",
        "-d", "emas", cwd=run,
    )  # fmt: skip
    assert finished.stdout.split() == [
        "emas/posthoc-0.1.safetensors", "emas/posthoc-0.15.safetensors"
    ]  # fmt: skip
    assert_bias(run / "emas/posthoc-0.1.safetensors", bias((100,)))
