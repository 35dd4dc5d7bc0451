"""Writes into the folder OUT two checkpoints of each layout that Flax has, and their arrays."""

import os
import sys

import flax.serialization
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from flax.training.train_state import TrainState


def parameters(seed, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 2)
    up = {"kernel": jax.random.normal(keys[0], (3, 4), dtype), "bias": jnp.full(4, seed, dtype)}
    return {"up": up, "layers": {"0": {"scale": jax.random.normal(keys[1], (), dtype)}}}


def train_state(seed):
    """A state after one step, as ``flax.training.checkpoints`` wrote it, too."""
    import optax

    state = TrainState.create(apply_fn=None, params=parameters(seed), tx=optax.adam(0.1))
    return state.apply_gradients(grads=parameters(seed + 7))


def main(out):
    os.makedirs(out, exist_ok=True)
    expected = {}
    for seed in range(2):
        whole = flax.serialization.to_state_dict(train_state(seed))
        variables = {
            "params": parameters(seed, jnp.bfloat16),
            "batch_stats": {"norm": {"mean": jnp.full(2, seed + 0.5)}},
        }
        for layout, tree, model in (
            ("state", whole, {"params": whole["params"]}),
            ("variables", variables, variables),
            ("model", parameters(seed), parameters(seed)),
            ("chunks", {"params": parameters(seed)}, {"params": parameters(seed)}),
        ):
            # Larger arrays than that are written in chunks.
            flax.serialization.MAX_CHUNK_SIZE = 16 if layout == "chunks" else 1 << 30
            name = f"{layout}-{seed}.msgpack"
            with open(f"{out}/{name}", "wb") as file:
                file.write(flax.serialization.msgpack_serialize(tree))
            for key, array in flax.traverse_util.flatten_dict(model, sep=".").items():
                expected[f"{name}/{key}"] = np.asarray(array).astype(np.float32)
    np.savez_compressed(f"{out}/expected.npz", **expected)


if __name__ == "__main__":
    main(sys.argv[1])
