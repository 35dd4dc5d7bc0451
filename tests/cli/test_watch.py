"""An average that follows a run."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from checkpoints import save, state
from command_line import SWAVG, done, swavg
from run_of_five import STEPS, assert_bias, bias

QUICK = ["--interval", "0.1"]


def started(run, *args):
    return subprocess.Popen(
        [*SWAVG, "watch", *QUICK, *args], cwd=run, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def put(run, step):
    """A checkpoint that appears whole."""
    target = run / "run" / f"step_{step}-val_loss=0.001.safetensors"
    path = save(run / "beside" / f"{step}.safetensors", state(step))
    os.rename(path, target)


@pytest.mark.slow
def test_the_average_follows_until_a_step(run):
    watching = started(run, "--until", "120", "run", "--last", "2", "-o", "out.safetensors")
    try:
        assert watching.stdout.readline() == "out.safetensors\n"
        assert_bias(run / "out.safetensors", bias(STEPS[-2:]))
        put(run, 110)
        assert watching.stdout.readline() == "out.safetensors\n"
        assert_bias(run / "out.safetensors", bias((100, 110)))
        put(run, 120)
        assert watching.stdout.readline() == "out.safetensors\n"
        assert watching.wait(30) == 0
    finally:
        watching.kill()
        watching.communicate()
    assert_bias(run / "out.safetensors", bias((110, 120)))


@pytest.mark.slow
def test_batch_norm_is_told_in_the_first_round_only(tmp_path):
    for step in (1, 2):
        save(tmp_path / "run" / f"step-{step}.st", {"n.running_mean": torch.full((3,), 1.0 + step)})
    watching = started(tmp_path, "--until", "3", "run", "--last", "2", "-o", "out.safetensors")
    try:
        assert watching.stdout.readline() == "out.safetensors\n"
        path = save(tmp_path / "beside.st", {"n.running_mean": torch.full((3,), 4.0)})
        os.rename(path, tmp_path / "run" / "step-3.st")
        out, told = watching.communicate(timeout=30)
    finally:
        watching.kill()
        watching.communicate()
    assert out == "out.safetensors\n"
    assert told.count("averaged 2 checkpoints") == 2
    assert told.count("batch-norm statistics were averaged") == 1


@pytest.mark.slow
def test_a_file_that_is_not_finished_is_waited_for(run):
    data = Path(save(run / "beside" / "whole.safetensors", state(200))).read_bytes()
    path = run / "run" / "step_200.safetensors"
    path.write_bytes(data[:100])
    watching = started(run, "--until", "200", "run", "--last", "1", "-o", "out.safetensors")
    try:
        assert watching.stderr.readline().startswith("waiting: ")
        assert not (run / "out.safetensors").exists()
        path.write_bytes(data)
        assert watching.stdout.readline() == "out.safetensors\n"
        assert watching.wait(30) == 0
    finally:
        watching.kill()
        watching.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_also_after_an_output(run, number, code):
    watching = started(run, "ema", "run", "--decay", "0.5", "-o", "out.safetensors")
    try:
        assert watching.stdout.readline() == "out.safetensors\n"
        time.sleep(0.3)
        watching.send_signal(number)
        assert watching.wait(30) == code
    finally:
        watching.kill()
        watching.communicate()
    # Started again, what is up to date stays.
    before = (run / "out.safetensors").stat().st_ino
    args = ["watch", *QUICK, "--until", "100", "ema", "run", "--decay", "0.5"]
    done(*args, "-o", "out.safetensors", cwd=run)
    assert (run / "out.safetensors").stat().st_ino == before


def test_what_cannot_be_watched(run):
    assert "Give the folder" in swavg("watch", "nowhere", "-o", "out", cwd=run).stderr
    shutil.copyfile(next((run / "run").glob("step_10-*")), run / "out.safetensors")
    args = ["watch", *QUICK, "--until", "10", "run", "-o", "out.safetensors"]
    found = swavg(*args, cwd=run)
    assert found.returncode == 7


@pytest.mark.slow
def test_options_are_those_of_the_command_and_what_it_has_to_say_is_shown(run):
    """``--every`` counts steps, as everywhere; an output inside the run is no change."""
    args = ["watch", *QUICK, "--until", "100", "run", "--every", "30", "-o", "run/out.safetensors"]
    finished = done(*args, cwd=run)
    assert_bias(run / "run" / "out.safetensors", bias((10, 40, 100)))
    assert "averaged 3 checkpoints" in finished.stderr


@pytest.mark.slow
def test_ways_out_are_options(run):
    (run / "out.safetensors").write_bytes(b"of somebody else")
    found = swavg("watch", *QUICK, "run", "--last", "2", "-o", "out.safetensors", cwd=run)
    assert (found.returncode, "Use --force to replace it." in found.stderr) == (7, True)
    assert (run / "out.safetensors").read_bytes() == b"of somebody else"
    watching = started(run, "run", "--last", "99", "-o", "other.safetensors")
    try:
        assert "--at-most" in watching.stderr.readline()
    finally:
        watching.terminate()
        watching.communicate()
