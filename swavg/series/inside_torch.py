"""What a torch zip holds besides its weights: plain values, by their dotted paths."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping

from swavg.errors import InputError
from swavg.formats.files import InputFile
from swavg.formats.torch_pickle import MAX_BYTES, read_pickle
from swavg.formats.torch_plain import RECIPE
from swavg.formats.torch_records import Record, read_records
from swavg.formats.torch_values import Opaque, View

_PLACES = ("metrics", "callbacks", "extra_state", "optimizer_history", "reporter")
"""Where known projects keep what is said of a checkpoint, below its top."""
_DEEPEST = 5
_MOST = 100_000
_LONGEST = 1000


def torch_scalars(
    path: str, fd: int, file: InputFile
) -> tuple[dict[str, int | float | str], str | None]:
    """The values, and the recipe if swavg wrote the file. InputError if it is broken."""
    records = {record.name: record for record in read_records(fd, file)}
    root = next(iter(records), "").partition("/")[0]
    pickled = records.get(f"{root}/data.pkl")
    if pickled is None or pickled.size > MAX_BYTES:
        raise InputError(path, "a zip, but no torch checkpoint")
    with io.FileIO(os.dup(fd), "rb") as raw:
        raw.seek(pickled.offset)
        with io.BufferedReader(raw, 1 << 16) as source:
            top: object = read_pickle(path, source, pickled.size)[0]
    scalars = {}
    for _, (name, value) in zip(range(_MOST), _leaves(top), strict=False):
        if isinstance(value, View):
            value = _element(value, fd, records.get(f"{root}/data/{value.storage.key}"))
        short = not isinstance(value, str) or len(value) <= _LONGEST
        if isinstance(value, (int, float, str)) and not isinstance(value, bool) and short:
            scalars[name] = value
    recipe = records.get(f"{root}/{RECIPE}")
    if recipe is None:
        return scalars, None
    return scalars, os.pread(fd, min(recipe.size, MAX_BYTES), recipe.offset).decode(
        errors="replace"
    )


def _leaves(node: object, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, object]]:
    for key, value in _entries(node).items():
        if type(key) not in (int, str) or (depth == 0 and key == "state_dict"):
            continue
        if depth < _DEEPEST and (depth > 0 or key in _PLACES):
            last = value[-1] if isinstance(value, list) and value else None
            yield from _leaves(
                {"-1": last} if last is not None else value, f"{prefix}{key}.", depth + 1
            )
        yield f"{prefix}{key}", value


def _entries(node: object) -> Mapping[object, object]:
    if isinstance(node, Opaque):
        return node.pairs or (node.state if isinstance(node.state, dict) else {})
    return node if isinstance(node, dict) else {}


def _element(view: View, fd: int, record: Record | None) -> float | None:
    """The one element of a tensor; None if it has more."""
    size = view.dtype.bits // 8
    if record is None or size == 0 or view.size not in ((), (1,), [1], []):
        return None
    place = view.offset * size if type(view.offset) is int else -1
    if not 0 <= place <= record.size - size:
        return None
    import numpy as np

    try:
        return float(
            np.frombuffer(os.pread(fd, size, record.offset + place), view.dtype.numpy())[0]
        )
    except (TypeError, ValueError):
        return None
