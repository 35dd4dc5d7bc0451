"""Checkpoints of a tiny model as Orbax writes them: write.py OUT.

Each folder is a run of one model with other weights, laid over 2 x 2 devices, so that chunks are
tiles; expected.npz has the model's arrays under CHECKPOINT/NAME (bfloat16 as float32).
"""

import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import linen, nnx
from flax.training.train_state import TrainState
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("x", "y"))
expected = {}


class Net(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Dense(8, name="up")(x)
        x = linen.BatchNorm(use_running_average=True, name="norm")(x)
        return linen.Dense(3, name="down", use_bias=False, param_dtype=jnp.bfloat16)(x)


class State(TrainState):
    batch_stats: dict
    ema_params: dict


def laid_out(tree):
    """The arrays over the devices: matrices in tiles, where they can be cut."""

    def put(array):
        spec = PartitionSpec("x", "y") if array.shape == (12, 8) else PartitionSpec()
        return jax.device_put(array, NamedSharding(mesh, spec))

    return jax.tree.map(put, tree)


def variables(seed):
    chance = np.random.default_rng(seed)
    made = Net().init(jax.random.key(0), jnp.zeros((1, 12)))
    return laid_out(jax.tree.map(lambda a: jnp.asarray(chance.normal(size=a.shape), a.dtype), made))


def state(step):
    made = variables(step)
    optimizer = optax.sgd(0.1, momentum=0.9)
    return State(
        step=step,
        apply_fn=None,
        params=made["params"],
        tx=optimizer,
        opt_state=optimizer.init(made["params"]),
        batch_stats=made["batch_stats"],
        ema_params=jax.tree.map(lambda array: array / 2, made["params"]),
    )


def keep(path, tree):
    for name, array in flatten_dict(tree, sep=".").items():
        found = np.asarray(array)
        expected[f"{path}/{name}"] = (
            found.astype(np.float32) if found.dtype == jnp.bfloat16 else found
        )


def run(name, make, save_args=None, steps=(10, 20), **how):
    """A run of what ``make`` makes of a step."""
    handler = ocp.PyTreeCheckpointHandler(**how)
    with ocp.CheckpointManager(Path(name).absolute(), item_handlers=handler) as manager:
        for step in steps:
            made = make(step)
            given = None if save_args is None else jax.tree.map(lambda _: save_args, made)
            manager.save(step, args=ocp.args.PyTreeSave(made, save_args=given))
            of = made if isinstance(made, dict) else vars(made)
            keep(f"{name}/{step}", {key: of[key] for key in ("params", "batch_stats")})


def items():
    """A run with an item for the weights and one for the rest, and metrics."""
    options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["loss"])
    with ocp.CheckpointManager(Path("items").absolute(), options=options) as manager:
        for step in (1, 2):
            made = state(step)
            args = ocp.args.Composite(
                params=ocp.args.StandardSave(made.params),
                state=ocp.args.StandardSave({"step": np.int64(step)}),
            )
            manager.save(step, args=args, metrics={"loss": 1.5 / step})
            keep(f"items/{step}", {"params": made.params})


def modules():
    """States of nnx modules, each saved by itself, without a manager."""
    for number in (1, 2):
        module = nnx.Linear(3, 4, rngs=nnx.Rngs(number))
        tree = {"layer": nnx.to_pure_dict(nnx.state(module)), "count": [np.int32(number)]}
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(Path(f"module-{number}").absolute(), tree)
        keep(f"module-{number}", {"layer": tree["layer"], "count": {"0": tree["count"][0]}})


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    run("ocdbt", state)
    run("zarr3", variables, use_zarr3=True, save_args=ocp.SaveArgs(chunk_byte_size=48))
    run("plain", variables, use_ocdbt=False)
    run("plain3", variables, use_ocdbt=False, use_zarr3=True, steps=(10,))
    items()
    modules()
    # What says only how devices held the arrays is as large as all else, and paths are nobody's.
    for name in ("_sharding", "array_metadatas/process_0", "commit_success.txt"):
        for path in Path().rglob(name):
            path.unlink()
    np.savez_compressed("expected.npz", **expected)
