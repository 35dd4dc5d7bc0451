"""Writes into the folder OUT two checkpoints of each layout that Keras has, and their arrays."""

import os
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"
import keras
import numpy as np


def model(layout, seed):
    """A tiny model; the one in an archive was trained for two steps with momentum."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    dtype = "bfloat16" if layout == "bf16" else "float32"
    inputs = keras.Input((3,))
    values = keras.layers.Dense(2, name="up", dtype=dtype)(inputs)
    if layout == "archive":
        values = keras.layers.BatchNormalization(name="norm")(values)
    made = keras.Model(inputs, values)
    if layout == "archive":
        made.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
        chance = np.random.default_rng(seed)
        data = chance.random((4, 3), np.float32), chance.random((4, 2), np.float32)
        made.fit(*data, batch_size=2, verbose=0)
    else:
        made.layers[1].bias.assign([seed + 0.25, -seed])
    return made


def arrays_of(layout, made):
    """The arrays of a model by the names in its files; bfloat16 as float32."""
    found = {}
    for layer in made.layers:
        group = {"up": "dense", "norm": "batch_normalization"}.get(layer.name)
        for number, variable in enumerate(layer.weights):
            name = f"{layer.name}/{variable.path}"
            name = name if layout == "legacy" else f"layers/{group}/vars/{number}"
            array = keras.ops.convert_to_numpy(variable)
            found[name] = array.astype(np.float32)
    return found


def main(out):
    os.makedirs(out, exist_ok=True)
    expected = {}
    for layout, suffix in (("archive", ".keras"), ("legacy", ".h5"), ("bf16", ".weights.h5")):
        for seed in range(2):
            made = model(layout, seed)
            path = f"{out}/{layout}-{seed}{suffix}"
            (made.save_weights if layout == "bf16" else made.save)(path)
            for name, array in arrays_of(layout, made).items():
                expected[f"{os.path.basename(path)}/{name}"] = array
    np.savez_compressed(f"{out}/expected.npz", **expected)


if __name__ == "__main__":
    main(sys.argv[1])
