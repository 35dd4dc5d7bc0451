"""Signals that end a run."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from checkpoints import load, save, state
from command_line import SWAVG


@pytest.fixture
def pair(tmp_path):
    """Two checkpoints, a and b, in a folder of their own."""
    save(tmp_path / "a.safetensors", state(1))
    save(tmp_path / "b.safetensors", state(2))
    return tmp_path


LATE = """
import os, signal, sys
from swavg.cli import main
from swavg.storage import pending, publish
sync = publish.sync_folder
def interrupted(folder):
    os.kill(os.getpid(), signal.{name})
    sync(folder)
publish.sync_folder = interrupted
main(sys.argv[1:])
"""
EARLY = LATE.replace("sync = publish.sync_folder", "sync = None").replace(
    "publish.sync_folder = interrupted",
    "pending.Renamed.keep_mode = lambda *_: interrupted(None)",
)


def expected(folder):
    one, two = load(folder / "a.safetensors"), load(folder / "b.safetensors")
    return ((one["body.bias"].double() + two["body.bias"].double()) / 2).float()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_after_the_rename_comes_too_late(pair, name):
    command = [sys.executable, "-c", LATE.format(name=name), "average"]
    done = subprocess.run(
        [*command, "a.safetensors", "b.safetensors", "-o", "c.safetensors"],
        cwd=pair,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "c.safetensors\n")
    assert torch.equal(load(pair / "c.safetensors")["body.bias"], expected(pair))


def test_a_signal_before_the_rename_leaves_nothing(pair):
    done = subprocess.run(
        [sys.executable, "-c", EARLY.format(name="SIGINT"), "average", "a.safetensors",
         "b.safetensors", "-o", "c.safetensors"],
        cwd=pair, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 130
    assert sorted(os.listdir(pair)) == ["a.safetensors", "b.safetensors"]
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 130)]
)
def test_an_interrupt_has_its_code_and_leaves_nothing(tmp_path, number, code):
    big = {f"x{i}": torch.zeros(2_000_000) for i in range(12)}
    paths = [save(tmp_path / "in" / f"{i}.safetensors", big) for i in range(4)]
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "c.safetensors"
    process = subprocess.Popen(
        [*SWAVG, "average", *paths, "-o", out, "--threads", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not any((tmp_path / "out").iterdir()):
        time.sleep(0.002)
        assert process.poll() is None
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "interrupted" in said
    assert list((tmp_path / "out").iterdir()) == []
