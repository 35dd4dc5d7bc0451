"""docs/training.md, as it stands: each page's loop, and the command line over what it wrote."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
load_file = pytest.importorskip("safetensors.torch").load_file
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


def commands(heading):
    """The commands that a section has for after its program."""
    part = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", part, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


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
        for line in commands(name):
            swavg(folders[name], *shlex.split(line.removeprefix("swavg ")))
    return folders


def test_plain_torch_runs_and_its_snapshots_are_read(ran):
    folder = ran["Plain PyTorch"]
    for said in ("mean of 6", "after 32 updates", "2 updates of 8 batches"):
        assert said in ran["Plain PyTorch", "output"]
    swavg(folder, "convert", "last.pt", "ema.safetensors", "--key", "ema.averages")
    assert len(load_file(folder / "ema.safetensors")) == 9
    assert len(load_file(folder / "adapter.safetensors")) == 2
    assert "val_loss" in swavg(folder, "list", "run")
    best = swavg(folder, "average", "run", "--best", "3", "--metric", "val_loss", "-q")
    assert best == "averaged.safetensors\n"
    made = swavg(folder, "posthoc", "profiles", "--sigma-rel", "0.07", "-q", "-d", "made")
    assert (folder / made.strip()).is_file()


def test_lightning_runs_and_its_snapshots_are_read(ran):
    folder = ran["Lightning"]
    saved = torch.load(folder / "last.ckpt")["callbacks"]["EMACallback"]["averages"]
    averages = load_file(folder / "ema.safetensors")
    assert averages.keys() == saved.keys()
    assert all(torch.equal(averages[name], saved[name]) for name in saved)
    in_block = torch.load(folder / "ema.ckpt")["state_dict"]
    assert all(torch.equal(in_block[name], saved[name]) for name in saved)
    best = swavg(folder, "average", "lightning-run", "--best", "2", "--metric", "val_loss", "-q")
    assert best == "averaged.safetensors\n"


def test_transformers_runs_and_its_snapshots_are_read(ran):
    folder = ran["Transformers"]
    averages = load_file(folder / "trainer-run" / "checkpoint-8" / "ema.safetensors")
    for written in ("final-ema", "out"):
        found = load_file(folder / written / "model.safetensors")
        assert all(torch.equal(found[name], averages[name]) for name in averages)
    assert len(load_file(folder / "mean" / "model.safetensors")) == len(averages)
    assert swavg(folder, "average", "trainer-snapshots", "-q") == "averaged.safetensors\n"
