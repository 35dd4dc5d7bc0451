"""Progress on a terminal, and elsewhere."""

import io
import itertools
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from checkpoints import save
from command_line import done, process
from terminal import on_a_terminal

from swavg.console.progress import progress_bar


@pytest.mark.slow
def test_progress_shows_on_a_terminal_only(tmp_path):
    big = {f"x{i}": torch.zeros(3_000_000) for i in range(6)}
    paths = [save(tmp_path / f"{i}.safetensors", big) for i in range(4)]
    shown, code = on_a_terminal(["average", *paths, "-o", tmp_path / "c.safetensors"])
    assert code == 0
    assert "━" in shown
    assert "MB" in shown
    piped = process("average", *paths, "-o", tmp_path / "d.safetensors")
    assert "━" not in piped.stderr
    assert "\x1b" not in piped.stderr


def clock_of(monkeypatch, ticks):
    """Let progress see these times, and nothing else: modules keep what they import."""
    monkeypatch.setattr(
        "swavg.console.progress.time", SimpleNamespace(monotonic=lambda: next(ticks))
    )


def test_where_there_is_no_terminal_a_line_comes_now_and_then(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    clock_of(monkeypatch, iter([0.0, 1.0, 31.0, 40.0, 62.0]))
    with progress_bar("averaging", "bytes", shown=True) as update:
        for done in (1, 2, 3, 4):
            update(done * 10**9, 4 * 10**9)
    assert sys.stderr.getvalue() == (
        "averaging 2.00 of 4.00 GB, 33.3 MB/s, 1:00 left\naveraging 4.00 of 4.00 GB, 64.5 MB/s\n"
    )
    with progress_bar("averaging", "bytes", shown=False) as update:
        assert update is None


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize(
    ("unit", "scale", "said"),
    [
        ("bytes", 10**9, "12 of 140 GB, 600 MB/s, 3:33 left"),
        ("batches", 1, "12 of 140 batches, 3:33 left"),
        ("points", 1, "12 of 140 points, 3:33 left"),
    ],
)
def test_a_terminal_gets_a_bar_and_the_figures(monkeypatch, columns, unit, scale, said):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    clock_of(monkeypatch, itertools.chain([0.0, 0.0], itertools.repeat(20.0)))
    with progress_bar("averaging", unit, shown=True) as update:
        update(0, 140 * scale)
        update(12 * scale, 140 * scale)
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", sys.stderr.getvalue()))
    (line,) = {line for line in lines if said in line}
    assert line.startswith("averaging ")
    assert "━━━━" in line
    assert line.rstrip().endswith(said)
    assert len(line) == columns


def lines_of(monkeypatch, *args, **more):
    """What a command says of its progress where each look at the clock is half a minute later."""
    with monkeypatch.context() as patch:
        clock_of(patch, itertools.count(0.0, 30.0))
        found = done(*args, **more).stderr.splitlines()
    return [line.split()[0] for line in found if re.search(r" \d\S* of \S+ (kB|B|points)", line)]


@pytest.mark.parametrize(
    ("args", "verb"),
    [
        (["average", "a.st", "b.st", "-o", "out.st"], "averaging"),
        (["average", "a.st", "b.st", "-o", "out.st", "--part", "1/1"], "averaging"),
        (["average", "a.st", "b.st", "-o", "out.st", "--continue"], "averaging"),
        (["convert", "a.st", "out.npz"], "converting"),
        (["verify", "mean.st", "--all"], "comparing"),
        (["diff", "a.st", "a.st"], "comparing"),
        (["inspect", "a.st", "--stats"], "reading"),
    ],
)
def test_every_command_that_may_take_long_says_where_it_is(tmp_path, monkeypatch, args, verb):
    for seed, name in enumerate("ab"):
        save(tmp_path / f"{name}.st", {"x": torch.full((70_000,), float(seed))})
    done("average", "a.st", "b.st", "-o", "mean.st", cwd=tmp_path)
    assert set(lines_of(monkeypatch, *args, cwd=tmp_path)) == {verb}
