"""Whether tensors hold the same: in dtype, in shape, and in every byte that counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors_files import write_safetensors

from swavg.formats import open_checkpoint
from swavg.planning.same import STEP, same_elements
from swavg.storage.pool import Pool

LONG = np.arange(STEP // 4 + 5, dtype=np.float32)
"""More than is read at once."""


def changed(at: int) -> np.ndarray:
    values = LONG.copy()
    values[at] = -1
    return values


@pytest.mark.parametrize(
    ("other", "most", "same"),
    [
        (LONG, None, True),
        (changed(-1), None, False),
        (changed(-1), 4096, True),
        (changed(0), 4096, False),
        (changed(4096 // 4), 4096, True),
        (LONG.astype(np.int32), None, False),
        (LONG.reshape(1, -1), None, False),
    ],
    ids=["equal", "the last", "behind", "the first", "just behind", "dtype", "shape"],
)
def test_of_three_tensors_one_is_compared_with_two(
    tmp_path: Path, other: np.ndarray, most: int | None, same: bool
) -> None:
    tensors = []
    for name, values in (("a", LONG), ("b", LONG), ("c", other)):
        write_safetensors(tmp_path / name, {"w": values})
        checkpoint = open_checkpoint(tmp_path / name)
        tensors.append((checkpoint, checkpoint.tensors["w"]))
    with Pool() as pool:
        assert same_elements(pool, tensors, most=most) is same
