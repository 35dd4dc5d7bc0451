"""The tiny checkpoints that pages and examples speak of, and what they take as given."""

import os
import shutil
import sys

import numpy as np
import pytest
from pages import ROOT, blocks

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
val_loader = train_loader = batches
test_batches = train_batches = batches


def accuracy(outputs, target):
    return outputs.argmax(1) == target
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


@pytest.fixture(scope="session")
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
            (folder / f"run/checkpoint-{step}").mkdir()
            shutil.copyfile(file, folder / f"run/checkpoint-{step}/model.safetensors")
        else:
            shutil.copyfile(file, folder / "run" / f"step-{step}-val_loss=0.{step}.safetensors")
    for name in ("train", "model", "data"):
        (folder / f"{name}.py").write_text(TRAIN)
    (evaluator,) = (b.text for b in blocks(ROOT / "docs/soup.md") if "eval.py" in str(b.unrun))
    (folder / "eval.py").write_text(evaluator)
    shutil.copytree(ROOT / "tests/frameworks/tensorflow/files/keras", folder / "training")
    for step, name in zip((10, 20, 30), "abc", strict=True):
        output, policy = folder / f"checkpoint/step-{step}", swavg.Policy(format="dcp")
        swavg.average([folder / f"{name}.pt"], output=output, policy=policy)
    for number in range(2):
        file = f"state-{number}.msgpack"
        shutil.copyfile(ROOT / "tests/frameworks/flax/files" / file, folder / file)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, whose train.py is imported anew; ``python`` is this one."""
    monkeypatch.chdir(tmp_path)
    own = os.path.dirname(sys.executable)
    monkeypatch.setenv("PATH", f"{own}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("train", "model", "data"):
        sys.modules.pop(name, None)


@pytest.fixture
def given():
    """Names that Python takes as given."""
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
