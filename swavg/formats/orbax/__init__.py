"""Orbax checkpoints (JAX): a folder of a step, with a folder for each item in it, or one item.

What is heavy is imported when such a folder is there.
"""

from __future__ import annotations

import os

from swavg.formats.layout import Format, Later
from swavg.storage.paths import is_file

METADATA = "_METADATA"
"""The file of an item that lists its arrays."""
_OF_STEP = "_CHECKPOINT_METADATA"
_ITEMS = ("default", "params", "state", "items", "train_state", "model")
"""Names of items that tell a step, in which older versions of Orbax wrote no file of its own."""
UNFINISHED = ".orbax-checkpoint-tmp"
"""In the name of a folder that is being written."""


def _holds(path: str) -> bool:
    names = (_OF_STEP, METADATA, *(os.path.join(item, METADATA) for item in _ITEMS))
    return any(is_file(os.path.join(path, name)) for name in names)


FORMAT = Format(
    "orbax", (), lambda head: False, Later("orbax.opened:open_orbax"), holds=_holds, by_step=True
)
