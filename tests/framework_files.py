"""Checkpoints that a framework wrote (tests/frameworks), and the arrays that it had in them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import swavg
from swavg.formats import open_checkpoint

FRAMEWORKS = Path(__file__).parent / "frameworks"


def arrays_of(path: Path) -> dict[str, Any]:
    """The arrays of a checkpoint by name; bfloat16 as float32."""
    begin = f"{path.name}/"
    with np.load(path.parent / "expected.npz") as archive:
        return {key[len(begin) :]: archive[key] for key in archive if key.startswith(begin)}


def assert_read_and_averaged(paths: Sequence[Path], output: Path) -> None:
    """Each file holds the framework's own arrays, and the average of two their mean."""
    states = [arrays_of(path) for path in paths]
    for path, state in zip(paths, states, strict=True):
        checkpoint = open_checkpoint(path)
        assert set(checkpoint) == set(state)
        for name, array in state.items():
            np.testing.assert_array_equal(checkpoint.read(name).astype(np.float32), array)
    swavg.average(paths, output=output)
    found = open_checkpoint(output)
    for name, array in states[0].items():
        mean = ((array.astype(float) + states[1][name]) / 2).astype(found.read(name).dtype)
        np.testing.assert_array_equal(found.read(name), mean)
