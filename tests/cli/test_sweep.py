"""``swavg sweep``."""

import errno
import json
import os

import pytest
from checkpoints import save, state
from command_line import done, swavg
from run_of_five import STEPS, assert_bias, bias

import swavg as library
from swavg.storage import pending

NAMES = ["ema-decay-0.5.safetensors", "uniform-last-2.safetensors"]
SWEEP = ["sweep", "run", "-r", "ema:decay=0.5", "-r", "uniform:last=2", "-d", "out"]


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


def failing_at(count, call, code):
    """A function that fails the ``count``-th time."""
    calls = []

    def made(*args, **more):
        calls.append(args)
        if len(calls) == count:
            raise OSError(code, os.strerror(code))
        return call(*args, **more)

    return made


@pytest.fixture
def replaced(run):
    """A folder with older outputs of the same names."""
    (run / "out").mkdir()
    for name in NAMES:
        (run / "out" / name).write_text(name)
    return run


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("call", ["fsync", "exchange"])
def test_if_one_output_fails_all_names_are_as_they_were(replaced, monkeypatch, call, count):
    if call == "fsync":
        monkeypatch.setattr(os, "fsync", failing_at(count, os.fsync, errno.ENOSPC))
    else:
        failing = failing_at(count, pending.exchange, errno.EIO)
        monkeypatch.setattr(pending, "exchange", failing)
    found = swavg(*SWEEP, "--force", cwd=replaced)
    assert found.returncode == 5
    assert NAMES[count - 1] in found.stderr
    assert {path.name: path.read_text() for path in (replaced / "out").iterdir()} == {
        name: name for name in NAMES
    }


@pytest.mark.parametrize("count", [1, 2])
def test_if_one_new_name_fails_there_is_none(run, monkeypatch, count):
    (run / "out").mkdir()
    failing = failing_at(count, pending.rename_new, errno.EIO)
    monkeypatch.setattr(pending, "rename_new", failing)
    assert swavg(*SWEEP, cwd=run).returncode == 5
    assert os.listdir(run / "out") == []


def test_a_new_folder_that_fails_leaves_nothing(run, monkeypatch):
    monkeypatch.setattr(pending, "rename_new", failing_at(1, pending.rename_new, errno.EIO))
    assert swavg(*SWEEP, cwd=run).returncode == 5
    assert os.listdir(run) == ["run"]


def test_a_stream_is_no_output_of_several(run):
    (run / "out").mkdir()
    os.mkfifo(run / "out" / NAMES[0])
    found = swavg(*SWEEP, cwd=run)
    assert (found.returncode, "can only be a single output" in found.stderr) == (5, True)


def test_each_report_has_its_own_integers_and_what_was_read_is_counted_once(run):
    for step in STEPS:
        own = state(step) | {"steps": state(0)["steps"] * 0 + (step == 10)}
        save(run / "run" / f"step_{step}-val_loss={1 / step:.3f}.safetensors", own)
    recipes = ["-r", "uniform", "-r", "uniform:last=2", "-r", "ema:decay=0.5"]
    reports = json.loads(done("sweep", "run", *recipes, "-d", "out", "--json", cwd=run).stdout)
    assert [report["differing_integers"] for report in reports] == [["steps"], [], ["steps"]]
    floats = sum(4 * t.numel() for t in state(1).values() if t.is_floating_point())
    assert sum(report["read"] for report in reports) == len(STEPS) * floats + (5 + 2 + 5) * 8


@pytest.mark.parametrize("device", ["cpu", "torch"])
def test_a_sweep_reads_its_inputs_once(run, monkeypatch, device):
    inputs = sorted((run / "run").iterdir())
    for path in inputs:
        save(path, {"x": state(1)["body.bias"].repeat(10_000)})
    rows = [library.Row((weight, 1 - weight), (0, 1)) for weight in (0.2, 0.5, 0.9)]
    outputs = [run / f"{row}.safetensors" for row in range(3)]
    plan = library.prepare(inputs[:2], rows, outputs, distances=False)
    read, preadv = [], os.preadv

    def counting(fd, outs, at):
        read.append(preadv(fd, outs, at))
        return read[-1]

    monkeypatch.setattr(os, "preadv", counting)
    library.execute(plan, library.Resources(threads=1, device=device))
    assert sum(read) == 2 * 4 * 70_000
