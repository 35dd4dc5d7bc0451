"""What an average keeps of the snapshots that it is made of."""

import torch
from safetensors import safe_open

import swavg
from swavg.training import Snapshots


def test_an_average_does_not_pose_as_one_of_the_snapshots(tmp_path):
    model = torch.nn.Linear(2, 2)
    snapshots = Snapshots(tmp_path / "run", keep=5)
    for step in (1, 2):
        snapshots.save(model, step, {"val_loss": 0.5})
    swavg.average(snapshots.paths, output=tmp_path / "mean.safetensors")
    with safe_open(tmp_path / "mean.safetensors", "pt") as file:
        metadata = file.metadata()
    assert set(metadata) == {"format", "step", "swavg"}
    with safe_open(snapshots.paths[-1], "pt") as file:
        assert set(file.metadata()) == {"format", "step", "metrics", "snapshots"}
