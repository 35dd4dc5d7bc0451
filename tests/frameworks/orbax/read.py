"""Whether JAX reads what swavg wrote: read.py PATH EXPECTED.npz.

A safetensors file, since Orbax checkpoints are read only: with safetensors.flax, and into the model
that they are for.
"""

import sys

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors.flax import load_file
from write import Net

found, expected = load_file(sys.argv[1]), np.load(sys.argv[2])
assert set(found) == set(expected.files), set(found) ^ set(expected.files)
for name in expected.files:
    np.testing.assert_array_equal(np.asarray(found[name], expected[name].dtype), expected[name])
if "batch_stats.norm.mean" in found:
    variables = unflatten_dict(found, sep=".")
    assert Net().apply(variables, jnp.ones((2, 12))).shape == (2, 3)
