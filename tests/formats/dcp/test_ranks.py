"""What FSDP2 and tensor parallelism save on several ranks, and load again on others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ranks import ranks

import swavg

MODEL = """
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict, get_optimizer_state_dict, set_model_state_dict, set_optimizer_state_dict,
)
from torch.distributed.tensor.parallel import (
    ColwiseParallel, RowwiseParallel, parallelize_module,
)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 2)
        # Two of four ranks have no rows of the last ones.
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x):
        return self.norm(self.head(self.down(self.up(x))))

def whole(value):
    return value.full_tensor() if hasattr(value, "full_tensor") else value

def trained(seed, parallel):
    torch.manual_seed(seed)
    net = Net()
    if parallel:
        mesh = init_device_mesh("cpu", (world_size // 2, 2), mesh_dim_names=("dp", "tp"))
        plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        parallelize_module(net, mesh["tp"], plan)
        fully_shard(net, mesh=mesh["dp"])
    else:
        fully_shard(net, mesh=init_device_mesh("cpu", (world_size,)))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    net(torch.randn(4, 6)).sum().backward()
    optimizer.step()
    return net, optimizer
"""
SAVE = (
    MODEL
    + """
for parallel in (False, True):
    for step in (1, 2):
        net, optimizer = trained(step, parallel)
        state = {
            "model": get_model_state_dict(net), "optim": get_optimizer_state_dict(net, optimizer)
        }
        dcp.save(state, checkpoint_id=f"{folder}/{parallel}-{step}")
        full = {name: whole(value).detach() for name, value in state["model"].items()}
        if rank == 0:
            torch.save(full, f"{folder}/{parallel}-{step}.pt")
"""
)
LOAD = (
    MODEL
    + """
for parallel in (False, True):
    net, optimizer = trained(3, False)
    state = {"model": get_model_state_dict(net), "optim": get_optimizer_state_dict(net, optimizer)}
    dcp.load(state, checkpoint_id=f"{folder}/{parallel}-mean")
    set_model_state_dict(net, state["model"])
    set_optimizer_state_dict(net, optimizer, optim_state_dict=state["optim"])
    full = {name: whole(value).detach() for name, value in net.state_dict().items()}
    moment = {name: whole(value["exp_avg"]) for name, value in state["optim"]["state"].items()}
    if rank == 0:
        torch.save((full, moment), f"{folder}/{parallel}-loaded.pt")
"""
)


@pytest.mark.slow
def test_what_four_ranks_save_is_averaged_and_resumed_on_two(tmp_path):
    ranks(SAVE, tmp_path, 4)
    means = {}
    for parallel in ("False", "True"):
        paths = [tmp_path / f"{parallel}-{step}" for step in (1, 2)]
        states = [torch.load(f"{path}.pt") for path in paths]
        for path, state in zip(paths, states, strict=True):
            checkpoint = swavg.open_checkpoint(path)
            assert set(checkpoint) == set(state)
            for name, tensor in state.items():
                np.testing.assert_array_equal(checkpoint.read(name), tensor.numpy(), name)
        swavg.average(paths, output=tmp_path / f"{parallel}-mean")
        means[parallel] = {
            name: ((first.double() + states[1][name].double()) / 2).float()
            for name, first in states[0].items()
            if first.is_floating_point()
        }
    ranks(LOAD, tmp_path, 2)
    for parallel, mean in means.items():
        loaded, moments = torch.load(tmp_path / f"{parallel}-loaded.pt")
        for name, tensor in mean.items():
            assert torch.equal(loaded[name], tensor), name
        last = swavg.open_checkpoint(tmp_path / f"{parallel}-2", key="optim.state")
        for name, moment in moments.items():
            found = last.read(f"{name}.exp_avg")
            np.testing.assert_array_equal(moment.numpy(), found, name)
