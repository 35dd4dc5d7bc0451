"""Exits with 1 unless the safetensors file PATH, which swavg wrote, has the arrays in EXPECTED.npz
for Flax, bit for bit (rounded to bfloat16 where they are so), and they fit into a model."""

import sys

import flax.serialization
import flax.traverse_util
import jax.numpy as jnp
import numpy as np
from safetensors.flax import load_file
from write import parameters


def main(path, expected):
    found = load_file(path)
    with np.load(expected) as archive:
        arrays = dict(archive.items())
    equal = {
        name: name in found and bool(jnp.array_equal(found[name], array.astype(found[name].dtype)))
        for name, array in arrays.items()
    }
    if found.keys() != arrays.keys() or not all(equal.values()):
        sys.exit(f"{path}: {equal}, {sorted(found)}")
    tree = flax.traverse_util.unflatten_dict(found, sep=".")
    flax.serialization.from_state_dict(parameters(0), tree.get("params", tree))


if __name__ == "__main__":
    main(*sys.argv[1:])
