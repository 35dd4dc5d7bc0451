"""TensorFlow's checkpoints (V2 bundles): an index, and data files that share its prefix.

Their readers and writers are imported when such a checkpoint is there.
"""

from __future__ import annotations

import os
import re

from swavg.errors import InputError
from swavg.formats.folder import is_checkpoint_folder
from swavg.formats.layout import Format, Later
from swavg.storage.paths import exists, is_file, is_folder, names_if_any, read_file, reading

INDEX = ".index"
LATEST = "checkpoint"
"""The file of a folder that names its latest checkpoint."""
NAME = "ckpt"
"""What swavg calls the checkpoint in a folder that it writes."""
RECIPE = "swavg.json"
"""What swavg wrote of an average, beside it."""

MAGIC = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"
"""The last bytes of an index."""
_LATEST_LIMIT = 1 << 20


def prefix_at(path: str) -> str | None:
    """The prefix of the checkpoint that a path stands for: the prefix itself, its index, or the
    folder of one (of several the one that the file ``checkpoint`` in it names)."""
    if is_folder(path):
        return _in_folder(path)
    if path.endswith(INDEX):
        return path.removesuffix(INDEX) if _is_index(path) else None
    return path if not exists(path) and _is_index(path + INDEX) else None


def prefixes_in(folder: str) -> list[str]:
    """The names of the checkpoints in a folder."""
    names = [name for name in names_if_any(folder) if name.endswith(INDEX)]
    return sorted(
        name.removesuffix(INDEX) for name in names if _is_index(os.path.join(folder, name))
    )


def _in_folder(folder: str) -> str | None:
    names = prefixes_in(folder)
    if names and is_checkpoint_folder(folder, any_name=False):
        # What its library looks for goes first.
        return None
    if len(names) > 1:
        latest = _latest(os.path.join(folder, LATEST))
        names = [name for name in names if name == latest]
    return os.path.join(folder, names[0]) if names else None


def _latest(path: str) -> str | None:
    """The name that a file ``checkpoint`` gives, without the folder in which it once lay."""
    try:
        text = read_file(path, _LATEST_LIMIT)
    except InputError:
        return None
    found = re.search(rb'^model_checkpoint_path: "([^"]*)"', text, re.MULTILINE)
    return os.path.basename(os.fsdecode(found[1])) if found else None


def _is_index(path: str) -> bool:
    if not is_file(path):
        return False
    try:
        with reading(path) as (file, read):
            return file.size >= len(MAGIC) and read(file.size - len(MAGIC), len(MAGIC)) == MAGIC
    except InputError:
        return False


def recipe_in(path: str) -> str | None:
    """What swavg wrote of an average that ``path`` stands for. InputError."""
    folder, name = os.path.split(prefix_at(path) or "")
    place = os.path.join(folder, RECIPE)
    if name != NAME or not is_file(place):
        return None
    return read_file(place).decode(errors="replace")


FORMAT = Format(
    "tensorflow", (), lambda head: False, Later("tensorflow.opened:open_bundle"),
    Later("tensorflow.layout:lay_out"), recipe_in=recipe_in,
    holds=lambda path: prefix_at(path) is not None, folder=True, ambiguous=(".ckpt",),
)  # fmt: skip
