"""Where in a folder a distributed checkpoint lies, and what lies beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from swavg.errors import InputError
from swavg.storage.temporary import TEMPORARY

METADATA = ".metadata"
DATA = ".distcp"
RECIPE = "swavg.json"

_INNER = ("model_and_optim", "pytorch_model_fsdp_0")
"""The folder of the weights in a step's folder: OLMo-core's, Accelerate's."""
_OTHER_MODEL = "pytorch_model_fsdp_1"
_WEIGHTS = re.compile(r"(.*\.safetensors|(pytorch_)?model.*\.bin)(\.index\.json)?")
_DEPTH = 4
_MOST = 10_000


@dataclass(frozen=True, slots=True)
class Place:
    """The folder ``path``, and the name of the one in it that has the weights (empty: itself)."""

    path: str
    inner: str = ""

    @property
    def folder(self) -> str:
        return os.path.join(self.path, self.inner) if self.inner else self.path


def find_place(path: str) -> Place | None:
    """Where the distributed checkpoint of a folder lies; None if it is none, or not finished."""
    names = _names(path)
    if METADATA in names and any(name.endswith(DATA) for name in names):
        return Place(path)
    if any(map(_WEIGHTS.fullmatch, names)):
        return None
    for inner in _INNER:
        if inner in names and any(n.endswith(DATA) for n in _names(os.path.join(path, inner))):
            return Place(path, inner)
    return None


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except (OSError, ValueError):
        return []


def unfinished(folder: str) -> InputError:
    """The refusal of data files without what says where tensors lie in them."""
    return InputError(
        folder, f"has no {METADATA}, which is written last: this checkpoint is not finished"
    )


def check_one_model(place: Place) -> None:
    """InputError if the folder has several models, each in a folder of its own."""
    if place.inner and os.path.isdir(os.path.join(place.path, _OTHER_MODEL)):
        raise InputError(
            place.path,
            f"has several models ({place.inner}, {_OTHER_MODEL}, ...)",
            hint=f"Average each by itself: give {place.folder}, and so on.",
        )


def side_files(place: Place) -> tuple[dict[str, str], tuple[str, ...]]:
    """Files that go along with the weights, by their names below the place; and the names of what
    does not."""
    side: dict[str, str] = {}
    left_out = []
    for name in _below(place, "", 0):
        folder, base = os.path.split(name)
        if base.endswith(TEMPORARY) or len(side) >= _MOST:
            left_out.append(name)
        elif folder != place.inner or not (base in (METADATA, RECIPE) or base.endswith(DATA)):
            side[name] = os.path.join(place.path, name)
    return side, tuple(left_out)


def _below(place: Place, folder: str, depth: int) -> Iterator[str]:
    """Files below a place: in a folder of a step's all, else those of the folder itself."""
    full = os.path.join(place.path, folder)
    try:
        entries = sorted(os.scandir(full), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(full, f"cannot be read: {error.strerror}") from None
    for entry in entries:
        name = os.path.join(folder, entry.name)
        if entry.is_file():
            yield name
        elif place.inner and depth < _DEPTH and entry.is_dir():
            yield from _below(place, name, depth + 1)
