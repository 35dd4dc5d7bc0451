"""Signals that end a run."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from checkpoints import load, save, state
from command_line import SWAVG, children

pytestmark = pytest.mark.slow


@pytest.fixture
def pair(tmp_path):
    """Two checkpoints, a and b, in a folder of their own."""
    save(tmp_path / "a.safetensors", state(1))
    save(tmp_path / "b.safetensors", state(2))
    return tmp_path


INTERRUPTED = """
import os, signal, sys
from swavg.cli import main
from swavg.storage import {module}
call = {module}.{name}
def interrupted(*args, **more):
    os.kill(os.getpid(), signal.{signal})
    return call(*args, **more)
{module}.{name} = interrupted
main(sys.argv[1:])
"""


def interrupted(module, name, number):
    """The command line, which gets a signal when it comes to a certain function."""
    code = INTERRUPTED.format(module=module, name=name, signal=number)
    return [sys.executable, "-c", code, "average", "a.safetensors", "b.safetensors"]


def expected(folder):
    one, two = load(folder / "a.safetensors"), load(folder / "b.safetensors")
    return ((one["body.bias"].double() + two["body.bias"].double()) / 2).float()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_after_the_rename_comes_too_late(pair, name):
    command = interrupted("publish", "sync_folder", name)
    done = subprocess.run(
        [*command, "-o", "c.safetensors"], cwd=pair, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "c.safetensors\n")
    assert torch.equal(load(pair / "c.safetensors")["body.bias"], expected(pair))


def test_a_signal_before_the_rename_leaves_nothing(pair):
    command = interrupted("pending", "sync_folder", "SIGINT")
    done = subprocess.run(
        [*command, "-o", "c", "--max-shard-size", "1MB"], cwd=pair, capture_output=True, text=True
    )
    assert done.returncode == 130
    assert sorted(os.listdir(pair)) == ["a.safetensors", "b.safetensors"]
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


NOTHING = ("nothing was written", [])
KEPT = ("what was done stays", ["c.safetensors.parts.swavg-partial", "c.safetensors.swavg-partial"])


@pytest.mark.parametrize(
    ("number", "code", "more", "kept"),
    [
        (signal.SIGINT, 130, [], NOTHING),
        (signal.SIGTERM, 143, [], NOTHING),
        (signal.SIGHUP, 130, [], NOTHING),
        (signal.SIGTERM, 143, ["--continue"], KEPT),
        (signal.SIGINT, 130, ["--part", "1/1"], KEPT),
    ],
)
def test_an_interrupt_has_its_code_and_says_what_it_leaves(tmp_path, number, code, more, kept):
    big = {f"x{i}": torch.zeros(2_000_000) for i in range(12)}
    paths = [save(tmp_path / "in" / f"{i}.safetensors", big) for i in range(4)]
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "c.safetensors"
    process = subprocess.Popen(
        [*SWAVG, "average", *paths, "-o", out, "--threads", "1", *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while len([*(tmp_path / "out").iterdir()]) < max(1, len(kept[1])):
        time.sleep(0.002)
        assert process.poll() is None
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"interrupted; {kept[0]}" in said
    assert sorted(os.listdir(tmp_path / "out")) == kept[1]


def ended(pid):
    """Whether a process has ended, waited for or not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_killed_run_ends_its_workers_and_the_next_one_clears_up(tmp_path):
    big = {f"x{i}": torch.zeros(2_000_000) for i in range(12)}
    paths = [save(tmp_path / "in" / f"{i}.safetensors", big) for i in range(4)]
    (tmp_path / "out").mkdir()
    command = [
        *SWAVG,
        "average",
        *paths,
        "-o",
        tmp_path / "out" / "c.safetensors",
        "--threads",
        "2",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (workers := children(process.pid)):
        time.sleep(0.002)
        assert process.poll() is None
    process.kill()
    process.communicate(timeout=60)
    for _ in range(2000):
        if all(map(ended, workers)):
            break
        time.sleep(0.01)
    assert all(map(ended, workers))
    (left,) = os.listdir(tmp_path / "out")
    assert left.startswith(".c.safetensors.")
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{left}, which an earlier run had left" in again.stderr.replace("\n", " ")
    assert os.listdir(tmp_path / "out") == ["c.safetensors"]


IMPORTING = """
import os, signal, sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == "{name}":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
from swavg.__main__ import run
run()
"""


@pytest.mark.parametrize("name", ["swavg.cli", "click", "swavg.cli.average", "numpy"])
def test_an_interrupt_while_modules_are_imported_is_no_traceback(pair, name):
    command = [sys.executable, "-c", IMPORTING.format(name=name)]
    done = subprocess.run(
        [*command, "average", "a.safetensors", "b.safetensors", "-o", "c.safetensors"],
        cwd=pair,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.strip() == "swavg: interrupted; nothing was written"
    assert not (pair / "c.safetensors").exists()
