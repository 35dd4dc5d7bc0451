"""A model whose loss is known at every point, and what it takes to survey it."""

import sys

import pytest
import torch
from checkpoints import save

from swavg.cli import main

SCRIPT = '''
import time
import torch
from torch import nn

torch.set_num_threads(1)
CENTRE = torch.tensor([0.5, -1.0, 2.0, 0.25])


class Bowl(nn.Module):
    """Its loss is the squared distance of its weights from CENTRE, whatever the data."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.zeros(3))
        self.last = nn.Parameter(torch.zeros(1))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        return self.scale * torch.cat([self.first, self.last]).double()


def data():
    return [(torch.zeros(2, 1), torch.zeros(2)), (torch.zeros(1, 1), torch.zeros(1))]


def distance(outputs, target):
    return ((outputs - CENTRE) ** 2).sum()


def slow(outputs, target):
    time.sleep(0.02)
    return distance(outputs, target)


def fails(outputs, target):
    raise ValueError("no luck")


def broken(outputs, target):
    found = distance(outputs, target)
    return found * float("nan") if found > 20 else found / 0.0 if found > 12 else found


def loud():
    print("this is the user's own line")
    return data()
'''

CENTRE = torch.tensor([0.5, -1.0, 2.0, 0.25], dtype=torch.float64)
CORNERS = {
    "a": [0.0, 0.0, 0.0, 0.0],
    "b": [2.0, 0.0, 1.0, 0.0],
    "c": [0.5, 1.5, 1.0, -1.0],
}


def weights(values):
    """A state dict of the bowl."""
    return {
        "first": torch.tensor(values[:3]),
        "last": torch.tensor(values[3:]),
        "scale": torch.ones(()),
    }


def bowl(values):
    """The loss at weights."""
    return float(((torch.as_tensor(values, dtype=torch.float64) - CENTRE) ** 2).sum())


@pytest.fixture
def bowls(tmp_path, monkeypatch):
    """A folder, which is the current one, with three checkpoints of the bowl and its script."""
    for name, values in CORNERS.items():
        save(tmp_path / f"{name}.safetensors", weights(values))
    (tmp_path / "bowl.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("bowl")]:
        del sys.modules[name]


MODEL = ["--model", "bowl.py:Bowl", "--data", "bowl.py:data", "--loss", "bowl.py:distance"]
LANDSCAPE = ["landscape", "a.safetensors", "b.safetensors", "c.safetensors", *MODEL]


def call(*args):
    """The exit code of the command line in this process."""
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    return ended.value.code
