"""The formats of checkpoints that are no single file: folders, and files that share a prefix; and
which format any checkpoint has."""

from __future__ import annotations

from swavg.formats import dcp, folder, orbax, tensorflow, zero
from swavg.formats.dcp import hf_shards
from swavg.formats.files import recognised, unknown
from swavg.formats.layout import Format
from swavg.storage.paths import find_file, is_file, is_folder

_ROWS = (
    dcp.FORMAT, hf_shards.FORMAT, zero.FORMAT, orbax.FORMAT, tensorflow.FORMAT, folder.FORMAT,
)  # fmt: skip
PLACES: dict[str, Format] = {row.name: row for row in _ROWS}
"""``folder`` takes what no other one does."""


def format_at(path: str) -> Format | None:
    """The format, other than ``folder``, of the checkpoint that ``path`` stands for."""
    return next((row for row in PLACES.values() if row.holds(path)), None)


def format_of(path: str) -> Format:
    """The format of a checkpoint. InputError if there is nothing, or of another kind."""
    found = (recognised(path) if is_file(path) else None) or format_at(path)
    if found is not None:
        return found
    if is_folder(path):
        return folder.FORMAT
    find_file(path)
    raise unknown(path)


def is_one_folder(path: str, *, any_name: bool = True) -> bool:
    """Whether a folder is one checkpoint of a format of folders. ``any_name``: also by weights of a
    name that no library gives."""
    return format_at(path) is not None or folder.is_checkpoint_folder(path, any_name=any_name)
