"""README's recipes for runs of Lightning, of Trainer, and of plain .pt files."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from command_line import shell
from pages import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.torch]
# Threads are in each other's way for networks this small.
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}


def recipe(word):
    """The commands of the README behind the heading that begins with ``word``."""
    _, _, behind = (ROOT / "README.md").read_text().partition(f"**{word}")
    return re.search(r"```sh[^\n]*\n(.*?)```", behind, re.DOTALL)[1]


def losses(word, folder):
    """What the last command of a recipe finds, by the ends of the checkpoints' names."""
    (folder / "scripts").symlink_to(ROOT / "scripts")
    found = shell(f"set -e\n{recipe(word).rstrip()} --json", folder, env=ALONE)
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout[found.stdout.index("{") :])
    return {each["path"].rpartition("/")[2]: each["loss"] for each in report["checkpoints"]}


def trained(script, folder):
    subprocess.run([sys.executable, ROOT / "scripts" / script], cwd=folder, check=True,
                   capture_output=True, timeout=500, env=ALONE)  # fmt: skip


def test_a_lightning_run(tmp_path):
    trained("lightning_run.py", tmp_path)
    found = losses("A Lightning run", tmp_path)
    (last,) = (loss for name, loss in found.items() if "step=2280-" in name)
    assert found["swa-bn.ckpt"] < last


def test_a_trainer_run(tmp_path):
    trained("trainer_run.py", tmp_path)
    found = losses("A run of transformers' Trainer", tmp_path)
    assert found["swa"] < found["checkpoint-2280"]


def test_plain_files(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import digits

    folder = tmp_path / "quickstart-out" / "run-0"
    folder.mkdir(parents=True)
    for step in (1938, 1995):
        state = digits.network().state_dict()
        torch.save({"model": state, "optimizer": {}, "step": step}, folder / f"step-{step}.pt")
    assert set(losses("Plain `.pt` files", tmp_path)) == {"step-1995.pt", "plain-bn.pt"}
