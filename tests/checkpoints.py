"""Tiny checkpoints, written and read with the reference libraries."""

from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch

import swavg
from swavg.weights import mean


def save(path, tensors, metadata=None):
    """A safetensors file of torch tensors; the path as a string."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # The library refuses tensors that share memory.
    own = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(own, path, metadata)
    return str(path)


def load(path):
    """The tensors of a safetensors file, by name."""
    return safetensors.torch.load_file(path)


def state(seed, dtype=torch.float32, **more):
    """A small state dict: two layers, a counter."""
    generator = torch.Generator().manual_seed(seed)
    made = {
        "body.weight": torch.randn(7, 5, generator=generator).to(dtype),
        "body.bias": torch.randn(7, generator=generator).to(dtype),
        "head.weight": torch.randn(3, 7, generator=generator).to(dtype),
        "steps": torch.tensor(100),
    }
    return made | more


def series(folder, count=3, dtype=torch.float32):
    """``count`` safetensors files of the same small network."""
    return [
        save(Path(folder) / f"step-{100 * index}.safetensors", state(index, dtype))
        for index in range(1, count + 1)
    ]


def run_request(request, *outputs):
    """Do what a method asks for; the reports."""
    plan = swavg.prepare(request.inputs, request.rows, outputs, request.policy, notes=request.notes)
    return swavg.execute(plan)


def planned(inputs, output, weights=None, policy=None, *, cut=None, **more):
    """The plan of one output: the mean unless there are weights."""
    n = len(inputs)
    row = swavg.Row(tuple(weights or mean(n)), tuple(range(n)))
    plan = swavg.prepare(inputs, [row], [output], policy, **more)
    return plan if cut is None else replace(plan, cut=cut)
