"""Every block of shell and Python in the pages runs, or says why not."""

import shutil

import command_line
import pytest
from pages import PAGES, blocks

pytestmark = pytest.mark.slow

WITH = {
    "README.md": "a b ckpts run step-900 step-1000",
    "series.md": "run",
    "recipes.md": "run",
    "batch-norm.md": "averaged avg train model data",
    "landscape.md": "a b c run train",
    "evaluation.md": "a b avg run train",
    "tensorflow.md": "training",
    "large-runs.md": "checkpoint state-0 state-1",
    "scale.md": "run",
    "pipelines.md": "a b run ckpts",
    "library.md": "a b",
    "json.md": "",
    "soup.md": "ckpts train eval",
}


@pytest.fixture
def folder(checkpoints, here, request):
    """The part of it that a page needs, as the current folder."""
    names = WITH[request.node.callspec.params["page"].name].split()
    for path in checkpoints.iterdir():
        if path.name in names or path.stem in names:
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, here / path.name)
    if "a" in names and "train" in names:
        for letter, epoch in ("a", 20), ("b", 40):
            shutil.copyfile(checkpoints / f"{letter}.pt", here / "run" / f"epoch-{epoch}.pt")
    return here


def shown(page):
    return page.name


def commands(block):
    """The commands of a shell block, or of a console's lines that begin with a prompt."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line for line in lines if line and not line.startswith("#")]


def runs(page, *languages):
    return [each for each in blocks(page) if each.language in languages and each.unrun is None]


# docs/training.md is run by test_training.py: a program for each loop, and its commands after it.
RUN_HERE = [page for page in PAGES if page.name != "training.md"]


def with_blocks(*languages):
    return pytest.mark.parametrize(
        "page", [page for page in RUN_HERE if runs(page, *languages)], ids=shown
    )


def test_a_block_is_run_or_says_why_not():
    known = {"sh", "python", "console", "toml", "make", ""}
    for page in PAGES:
        for block in blocks(page):
            assert block.language in known, f"{page.name}: {block.language}"
            assert block.unrun is None or len(block.unrun) > 10, f"{page.name}: {block.text}"
    assert sum(len(blocks(page)) for page in PAGES) > 10


@with_blocks("sh", "console")
def test_every_command_runs(page, folder):
    if "train" in WITH[page.name]:
        pytest.importorskip("torch")
    for block in runs(page, "sh", "console"):
        for line in commands(block):
            found = command_line.line(line)
            if block.language == "console" and "..." not in block.text:
                assert set(found.splitlines()) <= set(block.text.splitlines())


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@with_blocks("python")
def test_every_block_of_python_runs(page, folder, given):
    for block in runs(page, "python"):
        exec(compile(block.text, page.name, "exec"), given)
