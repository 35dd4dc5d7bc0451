"""Exits with 1 unless Keras loads from PATH, which swavg wrote, the arrays in EXPECTED.npz bit for
bit (rounded to bfloat16 where the model is of that dtype)."""

import os
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"
import keras
import ml_dtypes
import numpy as np
from write import arrays_of, model


def main(path, expected):
    if path.endswith(".weights.h5"):
        layout, made = "bf16", model("bf16", 5)
        made.load_weights(path)
    else:
        layout = "archive" if path.endswith(".keras") else "legacy"
        made = keras.models.load_model(path)
    with np.load(expected) as archive:
        arrays = dict(archive.items())
    if layout == "bf16":
        arrays = {name: each.astype(ml_dtypes.bfloat16) for name, each in arrays.items()}
    found = arrays_of(layout, made)
    equal = {name: np.array_equal(found.get(name), each) for name, each in arrays.items()}
    if found.keys() != arrays.keys() or not all(equal.values()):
        sys.exit(f"{path}: {equal}, {sorted(found)}")
    if layout == "archive" and int(made.optimizer.iterations) != 2:
        sys.exit(f"{path}: its optimizer was lost")


if __name__ == "__main__":
    main(*sys.argv[1:])
