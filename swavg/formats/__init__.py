"""Opening checkpoints and laying out outputs: the table of formats is the one dispatch."""

from __future__ import annotations

import os

from swavg.errors import InputError, some
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.tensors import Shared

__all__ = ["format_name", "open_checkpoint", "recipe_in"]

_LISTED = 6


def open_checkpoint(
    path: str | os.PathLike[str], *, key: str | None = None, shared: Shared | None = None
) -> Checkpoint:
    """Open a checkpoint of any format in :data:`swavg.formats.table.FORMATS`: a file, a folder, or
    the prefix of several files.

    The kind is recognised by the bytes. Only headers and offsets are read; ``checkpoint[name]``
    is a lazy tensor, whose ``[...]`` or ``[a:b]`` reads it as a NumPy array. ``key`` is the dotted
    path of the state dict in a PyTorch file, or says which of several models in another format is
    meant (found by default); ``shared`` keeps once what
    checkpoints of one run have in common. Raises InputError for anything missing, broken or
    unsafe; nothing in a checkpoint is ever executed.
    """
    from swavg.formats.places import format_of

    path = os.fspath(path)
    try:
        return format_of(path).open(path, key, shared)
    except InputError as error:
        if error.path != path or (better := _of_parts(path)) is None:
            raise
        raise better from None


def format_name(path: str) -> str:
    """The name of the format of the checkpoint at ``path``, by its first bytes or by what a folder
    holds. InputError if there is nothing, or no checkpoint."""
    from swavg.formats.places import format_of

    return format_of(path).name


def recipe_in(path: str) -> str | None:
    """The text that swavg wrote into an average, found without reading its names and objects; None
    if there is none, or if ``path`` is no checkpoint, or a damaged one."""
    from swavg.formats.composite import as_composite
    from swavg.formats.places import format_of

    try:
        if (found := as_composite(path)) is not None:
            parts = (found.place(name) for name in found.parts if name)
            return next(filter(None, map(recipe_in, parts)), None)
        return format_of(path).recipe_in(path)
    except InputError:
        return None


def _of_parts(path: str) -> InputError | None:
    """The error of a composite where one checkpoint is asked for; None for another folder."""
    from swavg.formats.composite import find_composite
    from swavg.formats.parts import open_parts

    found = find_composite(path)
    if found is None or not found.parts:
        return None
    names = [*open_parts(found).parts]
    return InputError(
        path,
        f"consists of {len(names)} part{'s' * (len(names) != 1)}, where one checkpoint is expected:"
        f" {some(names, _LISTED)}",
        hint=f"Give one of them, such as {found.place(names[0])}.",
    )
