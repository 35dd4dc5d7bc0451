"""Every block of shell and Python in the pages runs, and so does every example of a docstring."""

import ast
import doctest
import importlib
import re
import shlex
import shutil
import sys

import command_line
import numpy as np
import pytest
from pages import PAGES, ROOT, blocks

import swavg

STEPS = (500, 600, 700, 800, 900, 1000)
TRAIN = '''
import torch
from torch import nn
from torch.nn import functional

torch.set_num_threads(1)


class Net(nn.Module):
    """What the page's checkpoints are of."""

    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(functional.relu(self.norm(self.body(x))))


def build():
    return Net()


def batches(count=2):
    torch.manual_seed(0)
    return [(torch.randn(8, 4), torch.randint(0, 3, (8,))) for _ in range(count)]


build_model, build_loader, test_loader, test, loader = build, batches, batches, batches, batches
'''


def tensors(seed):
    random = np.random.default_rng(seed)

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32)

    return {
        "body.weight": normal(8, 4),
        "body.bias": normal(8),
        "norm.weight": normal(8),
        "norm.bias": normal(8),
        "norm.running_mean": normal(8),
        "norm.running_var": normal(8) ** 2 + 1,
        "norm.num_batches_tracked": np.array(seed),
        "head.weight": normal(3, 8),
        "head.bias": normal(3),
    }


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder of all that the pages speak of."""
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("checkpoints")
    (folder / "ckpts").mkdir()
    (folder / "run").mkdir()
    for seed, name in enumerate(("a", "b", "c", "averaged", "avg"), 1):
        file = folder / f"{name}.safetensors"
        save_file(tensors(seed), file)
        swavg.average([file], output=folder / f"{name}.pt")
        shutil.copyfile(file, folder / name)
    for seed, step in enumerate(STEPS, 6):
        file = folder / f"step-{step}.safetensors"
        save_file(tensors(seed), file)
        swavg.average([file], output=folder / "ckpts" / f"step-{step}.pt")
        if step in (800, 900):
            swavg.average([file], output=f"{folder}/run/checkpoint-{step}/")
        else:
            shutil.copyfile(file, folder / "run" / f"step-{step}-val_loss=0.{step}.safetensors")
    for name in ("train", "model", "data"):
        (folder / f"{name}.py").write_text(TRAIN)
    # The results of runs that a page assumes.
    for name, step in (("epoch-20", 1), ("epoch-40", 2)):
        shutil.copyfile(folder / f"{'ab'[step - 1]}.pt", folder / "run" / f"{name}.pt")
    return folder


WITH = {
    "README.md": "a b ckpts run step-900 step-1000",
    "series.md": "run",
    "batch-norm.md": "averaged avg train model data",
    "landscape.md": "a b c run train",
}


@pytest.fixture
def folder(checkpoints, tmp_path, monkeypatch, request):
    """The part of it that a page needs, as the current folder."""
    names = WITH[request.node.callspec.params["page"].name].split()
    for path in checkpoints.iterdir():
        if path.name in names or path.stem in names:
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, tmp_path / path.name)
    if "landscape.md" not in request.node.name:
        for path in (tmp_path / "run").glob("epoch-*"):
            path.unlink()
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in set(sys.modules) - before & {"train", "model", "data"}:
        del sys.modules[name]


def shown(page):
    return page.name


def commands(block):
    """The commands of a shell block, or of a console's lines that begin with a prompt."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line for line in lines if line and not line.startswith("#")]


def run(line):
    """In this process unless the shell has something to do; the standard output."""
    bare = re.sub(r"'[^']*'", "", line.partition(" #")[0])
    if bare.startswith("swavg ") and not re.search(r"[|<>&;$*]", bare):
        found = command_line.swavg(*shlex.split(line, comments=True)[1:])
    else:
        missing = "command -v zstd >/dev/null || zstd() { cat; }"
        found = command_line.shell(f"{missing}; set -eo pipefail; {line}", ".")
    assert found.returncode == 0, f"{line}\n{found.stderr}"
    return found.stdout


def runs(page, *languages):
    return [each for each in blocks(page) if each.language in languages and each.unrun is None]


def with_blocks(*languages):
    return pytest.mark.parametrize(
        "page", [page for page in PAGES if runs(page, *languages)], ids=shown
    )


def test_a_block_is_run_or_says_why_not():
    known = {"sh", "python", "console", ""}
    for page in PAGES:
        for block in blocks(page):
            assert block.language in known, f"{page.name}: {block.language}"
            assert block.unrun is None or len(block.unrun) > 10, f"{page.name}: {block.text}"
    assert sum(len(blocks(page)) for page in PAGES) > 10


@with_blocks("sh", "console")
def test_every_command_runs(page, folder):
    for block in runs(page, "sh", "console"):
        for line in commands(block):
            found = run(line)
            if block.language == "console" and "..." not in block.text:
                assert set(found.splitlines()) <= set(block.text.splitlines())


def names():
    """What the examples take as given."""
    import torch

    script = {}
    exec(TRAIN, script)
    model = script["build"]()
    pairs = script["batches"]()

    def train(batch):
        torch.nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()

    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    return {
        "model": model, "evaluate": lambda model: None, "train": train, "torch": torch,
        "batches": 530 * pairs, "loader": pairs, "step": 1000, "sgd": sgd, "optimizer": sgd,
        "loss": lambda model, batch: model(batch[0]).sum(),
    }  # fmt: skip


# docs/training.md is run by test_training.py, a program for each loop.
@pytest.mark.torch
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if runs(page, "python") and page.name != "training.md"],
    ids=shown,
)
def test_every_block_of_python_runs(page, folder):
    given = names()
    for block in runs(page, "python"):
        exec(compile(block.text, page.name, "exec"), given)


def examples():
    """The docstrings with ``>>>``, by module and name."""
    found = {}
    for path in sorted((ROOT / "swavg").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node)
                if text and ">>>" in text:
                    name = path.relative_to(ROOT).with_suffix("")
                    found[f"{name}:{getattr(node, 'name', '')}"] = text
    return found


EXAMPLES = examples()
NEEDS = {"lightning": "lightning", "transformers": "transformers"}


class Trainer:
    """As much of a trainer as an example shows."""

    def __init__(self, *arguments, callbacks=(), **more):
        self.callback_handler = self
        self.callbacks = [*callbacks]
        self.model = arguments[0] if arguments else None

    def add_callback(self, callback):
        self.callbacks.append(callback)

    def train(self, *arguments):
        assert len(self.callbacks) == 2

    evaluate = predict = _load_from_checkpoint = train


@pytest.mark.torch
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_of_a_docstring_runs(name, checkpoints, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    for word, package in NEEDS.items():
        if f"/{word}/" in name:
            importlib.import_module(package)
    for letter in "ab":
        shutil.copyfile(checkpoints / f"{letter}.safetensors", tmp_path / f"{letter}.safetensors")
    monkeypatch.chdir(tmp_path)
    given = names() | {"Trainer": Trainer, "args": None}
    module = importlib.import_module(
        name.partition(":")[0].replace("/", ".").removesuffix(".__init__")
    )
    given |= {key: value for key, value in vars(module).items() if key[0].isupper()}
    for example in doctest.DocTestParser().get_examples(EXAMPLES[name]):
        exec(compile(example.source, name, "exec"), given)
