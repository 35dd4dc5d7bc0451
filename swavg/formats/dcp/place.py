"""Where in a folder a distributed checkpoint lies, and what lies beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from swavg.errors import InputError
from swavg.storage.paths import is_file, is_folder, names_if_any, names_in
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
    """Where the distributed checkpoint of a folder lies; None if it is none. Of a step's
    folder the weights may be unfinished."""
    names = names_if_any(path)
    if METADATA in names and any(name.endswith(DATA) for name in names):
        return Place(path)
    if any(map(_WEIGHTS.fullmatch, names)):
        return None
    for inner in _INNER:
        if inner in names and any(
            n.endswith(DATA) for n in names_if_any(os.path.join(path, inner))
        ):
            return Place(path, inner)
    return None


def is_unfinished(path: str) -> bool:
    """Whether a folder, or that of the weights in a step's, has data files only."""
    names = names_if_any((find_place(path) or Place(path)).folder)
    return METADATA not in names and any(name.endswith(DATA) for name in names)


def unfinished(folder: str) -> InputError:
    """The refusal of data files without what says where tensors lie in them."""
    if any(name.endswith(METADATA) for name in names_if_any(folder)):
        return InputError(
            folder,
            "has metadata of each rank alone (__0.metadata), which is not read",
            hint="Load it with torch on as many ranks, and save it with use_collectives=True.",
        )
    return InputError(
        folder, f"has no {METADATA}, which is written last: this checkpoint is not finished"
    )


def check_one_model(place: Place) -> None:
    """InputError if the folder has several models, each in a folder of its own."""
    if place.inner and is_folder(os.path.join(place.path, _OTHER_MODEL)):
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
    for inner in names_in(full):
        name, path = os.path.join(folder, inner), os.path.join(full, inner)
        if is_file(path):
            yield name
        elif place.inner and depth < _DEPTH and is_folder(path):
            yield from _below(place, name, depth + 1)
