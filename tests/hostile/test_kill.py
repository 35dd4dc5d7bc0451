"""A kill at any moment leaves the destination whole: the old, the new, or nothing."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from make import debris

ROOT = Path(__file__).parents[2]


def valid(path, expected):
    return np.array_equal(safetensors.numpy.load_file(path)["x"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True])
def test_a_kill_at_any_moment_leaves_the_destination_whole(tmp_path, old):
    zeros, chance = np.zeros(5 << 20, np.float32), random.Random(old)
    for value in (1, 2):
        made = safetensors.numpy.save({"x": zeros + value})
        (tmp_path / f"{value}.safetensors").write_bytes(made)
    out = tmp_path / "out.safetensors"

    def start():
        return subprocess.Popen(
            [sys.executable, "-m", "swavg", "average", "1.safetensors", "2.safetensors",
             "--force", "-q", "-o", out.name],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    begun = time.monotonic()
    assert start().wait(60) == 0
    whole = time.monotonic() - begun
    partial = finished = 0
    for _ in range(13):
        out.unlink(missing_ok=True)
        if old:
            out.write_bytes(safetensors.numpy.save({"x": zeros}))
        process = start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            # Most kills fall into the second half: before, modules are imported.
            process.wait(whole * chance.triangular(0.3, 1.1, 0.8))
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        partial += bool(debris(tmp_path))
        for name in debris(tmp_path):
            (tmp_path / name).unlink()
        if out.exists() and valid(out, zeros + 1.5):
            finished += 1
        else:
            assert out.exists() == old
            assert not old or valid(out, zeros)
    assert partial + finished >= 2
    assert valid(tmp_path / "1.safetensors", zeros + 1)


@pytest.mark.slow
def test_what_a_killed_run_left_is_cleared_away_by_the_next(tmp_path):
    for value in (1, 2):
        data = safetensors.numpy.save({"x": np.full(5 << 20, value, np.float32)})
        (tmp_path / f"{value}.safetensors").write_bytes(data)
    code = (
        "import os, signal, swavg\n"
        "swavg.average(['1.safetensors', '2.safetensors'], output='out.safetensors',"
        " on_progress=lambda now: now.read and os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(debris(tmp_path)) == 1
    again = subprocess.run(
        [sys.executable, "-m", "swavg", "average", "1.safetensors", "2.safetensors", "-o",
         "out.safetensors"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert debris(tmp_path) == []
    assert "swavg-partial" in again.stderr
    assert valid(tmp_path / "out.safetensors", np.full(5 << 20, 1.5, np.float32))
