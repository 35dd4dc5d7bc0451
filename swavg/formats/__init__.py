"""Opening checkpoints and laying out outputs: the table of formats is the one dispatch."""

from __future__ import annotations

import os

from swavg.errors import InputError
from swavg.formats.checkpoint import Checkpoint, Shared

__all__ = ["open_checkpoint", "recipe_in"]


def open_checkpoint(
    path: str | os.PathLike[str], *, key: str | None = None, shared: Shared | None = None
) -> Checkpoint:
    """Open a checkpoint: a file of any format in :data:`swavg.formats.files.FILES`, or a folder.

    The kind is recognised by the bytes. Only headers and offsets are read; ``checkpoint[name]``
    is a lazy tensor, whose ``[...]`` or ``[a:b]`` reads it as a NumPy array. ``key`` is the dotted
    path of the state dict in a PyTorch file (found by default); ``shared`` keeps once what
    checkpoints of one run have in common. Raises InputError for anything missing, broken or
    unsafe; nothing in a checkpoint is ever executed.
    """
    path = os.fspath(path)
    if os.path.isfile(path):
        from swavg.formats.files import open_file

        return open_file(path, key, shared)
    from swavg.formats.places import format_of

    return format_of(path).open(path, key, shared)


def recipe_in(path: str) -> str | None:
    """The text that swavg wrote into an average, found without reading its names and objects; None
    if there is none, or if ``path`` is no checkpoint, or a damaged one."""
    try:
        if os.path.isfile(path):
            from swavg.formats import files

            return files.recipe_in(path)
        from swavg.formats import composite, places

        if (found := composite.as_composite(path)) is not None:
            parts = (found.place(name) for name in found.parts if name)
            return next(filter(None, map(recipe_in, parts)), None)
        return places.format_of(path).recipe_in(path)
    except InputError:
        return None
