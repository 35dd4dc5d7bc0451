"""Loads what swavg wrote at PATH into the model, and exits 1 unless it is EXPECTED.npz."""

import sys

import numpy as np
import torch
from safetensors.torch import load_file
from write import Model


def main(path, expected):
    with open(path, "rb") as file:
        is_zip = file.read(2) == b"PK"
    state = torch.load(path, weights_only=True) if is_zip else load_file(path)
    if "tied.weight" not in state:
        # Of tied names safetensors has one.
        state["tied.weight"] = state["embed.weight"]
    model = Model()
    model.load_state_dict(state)
    held = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    with np.load(expected) as arrays:
        same = held.keys() == set(arrays) and all(
            np.array_equal(held[name], arrays[name]) for name in arrays
        )
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
