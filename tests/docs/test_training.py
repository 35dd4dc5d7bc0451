"""docs/training.md, as it stands: each page's loop, and the command line over what it wrote."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.torch]
PAGE = Path(__file__).parents[2] / "docs" / "training.md"
LOOPS = ("Plain PyTorch", "Lightning", "Transformers")


def sections():
    text = PAGE.read_text()
    found = {}
    for part in re.split(r"^## ", text, flags=re.MULTILINE):
        heading = part.partition("\n")[0]
        code = re.findall(r"^```python\n(.*?)^```$", part, flags=re.MULTILINE | re.DOTALL)
        found[heading] = "\n".join(code)
    return found


def run(arguments, folder):
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def swavg(folder, *arguments):
    return run(["-m", "swavg", *arguments], folder)


def test_the_page_has_a_section_for_each_loop():
    assert [name for name in sections() if name in LOOPS] == list(LOOPS)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Each loop's section run as a program of its own, in a folder of its own."""
    found = sections()
    shared = found["# While you train"]
    folders = {}
    for name in LOOPS:
        folders[name] = tmp_path_factory.mktemp(name.split()[0].lower())
        program = folders[name] / "page.py"
        program.write_text(f"{shared}\ntorch.set_num_threads(1)\n{found[name]}")
        folders[name, "output"] = run([str(program)], folders[name])
    return folders


def test_plain_torch_runs_and_its_snapshots_are_read(ran):
    folder = ran["Plain PyTorch"]
    assert "mean of 6" in ran["Plain PyTorch", "output"]
    assert "val_loss" in swavg(folder, "list", "run")
    best = swavg(folder, "average", "run", "--best", "3", "--metric", "val_loss", "-q")
    assert best == "averaged.safetensors\n"
    made = swavg(folder, "posthoc", "profiles", "--sigma-rel", "0.07", "-q", "-d", "made")
    assert (folder / made.strip()).is_file()


def test_lightning_runs_and_its_snapshots_are_read(ran):
    folder = ran["Lightning"]
    best = swavg(folder, "average", "lightning-run", "--best", "2", "--metric", "val_loss", "-q")
    assert best == "averaged.safetensors\n"


def test_transformers_runs_and_its_snapshots_are_read(ran):
    folder = ran["Transformers"]
    assert (folder / "trainer-run" / "checkpoint-8" / "ema.safetensors").is_file()
    assert swavg(folder, "average", "trainer-snapshots", "-q") == "averaged.safetensors\n"
