"""Progress on a terminal, and elsewhere."""

import io
import re
import sys

import pytest
import torch
from checkpoints import save
from command_line import process
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


def test_where_there_is_no_terminal_a_line_comes_now_and_then(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    clock = iter([0.0, 1.0, 31.0, 40.0, 62.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with progress_bar("averaging", "bytes", shown=True) as update:
        for done in (1, 2, 3, 4):
            update(done * 10**9, 4 * 10**9)
    assert sys.stderr.getvalue() == "averaging 2 GB of 4 GB\naveraging 4 GB of 4 GB\n"
    with progress_bar("averaging", "bytes", shown=False) as update:
        assert update is None


@pytest.mark.parametrize(
    ("unit", "said"), [("bytes", "MB"), ("batches", "2/4 batches"), ("points", "2/4 points")]
)
def test_a_terminal_gets_a_bar_in_the_unit_of_the_work(monkeypatch, unit, said):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    scale = 10**6 if unit == "bytes" else 1
    with progress_bar("working", unit, shown=True) as update:
        update(2 * scale, 4 * scale)
    shown = re.sub(r"\x1b\[\d+m", "", sys.stderr.getvalue())
    assert "working" in shown
    assert said in shown
