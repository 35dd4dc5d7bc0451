"""How an average was made, as an attribute of the root of an HDF5 file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from swavg.errors import InputError
from swavg.formats.keras.hdf5 import Changes, opened
from swavg.formats.template import Edit
from swavg.storage.paths import find_file
from swavg.storage.sources import Source

if TYPE_CHECKING:
    import h5py

_NAME = "swavg"
_MISSING = "how it was made is not recorded"
_MOST = 60_000
"""Bytes of a recipe at most: HDF5 has attributes of up to 64 KiB."""


def recipe_in(path: str) -> str | None:
    """:func:`recipe_at` for a whole file."""
    file = find_file(path)
    return recipe_at(file, 0, file.size)


def recipe_at(file: Source, start: int, size: int) -> str | None:
    """What swavg wrote into the HDF5 file in ``size`` bytes from ``start`` on; None if there is
    nothing. InputError."""
    with opened(file, start, size) as whole:
        if _NAME not in whole.attrs:
            return None
        # A text of any length may take HDF5 forever, in a damaged file.
        if whole.attrs.get_id(_NAME).dtype.kind != "S":
            return None
        text: bytes = whole.attrs[_NAME]
        return text.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Recorded:
    """How a recipe goes into a file: of it stay the first ``kept`` bytes but for ``edits``, and
    ``added`` follow. The bytes of datasets stay where they are, and as they are."""

    kept: int
    edits: Sequence[Edit] = ()
    added: bytes = b""
    notes: tuple[str, ...] = ()


def with_recipe(file: Source, recipe: str) -> Recorded:
    """How the HDF5 ``file`` gets a ``recipe`` (empty: none) in place of its own, with a note if it
    cannot."""
    text, notes = recipe.encode(), tuple[str, ...]()
    if len(text) > _MOST:
        notes = (f"{_MISSING}: that takes {len(text):,} bytes, of {_MOST:,}",)
        text = b""
    changes = Changes(file.size)
    try:
        with opened(file, 0, file.size, changes) as whole:
            _record(whole, text)
    except InputError as error:
        # It was read before: it is of a kind that HDF5 does not change.
        return Recorded(file.size, notes=(f"{_MISSING}: {error.problem}",))
    kept = min(file.size, changes.size)
    changed = sorted(at for at in changes.at if at < kept)
    edits = []
    for _, run in groupby(enumerate(changed), lambda each: each[1] - each[0]):
        places = [at for _, at in run]
        edits.append(Edit(places[0], len(places), bytes(map(changes.at.__getitem__, places))))
    added = bytes(changes.at.get(at, 0) for at in range(kept, changes.size))
    return Recorded(kept, edits, added, notes)


def _record(whole: h5py.File, text: bytes) -> None:
    if text:
        import h5py
        import numpy as np

        whole.attrs.create(_NAME, np.array(text, h5py.string_dtype("utf-8", len(text))))
    elif _NAME in whole.attrs:
        del whole.attrs[_NAME]
