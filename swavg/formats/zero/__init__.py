"""DeepSpeed's ZeRO folders of stages 1, 2 and 3: which they are, and the row of the format.

``global_stepN`` has a file of the optimizer for each rank and a model file; a folder above it (of
Lightning, of Accelerate, of a run) names it in ``latest``. Folders of tensor or pipeline
parallelism, and of experts, are averaged part by part and are none of these.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace

from swavg.errors import InputError
from swavg.formats.folder import is_checkpoint_folder
from swavg.formats.layout import Format, Later
from swavg.formats.part_names import is_plain_name
from swavg.storage.paths import is_folder, names_if_any, names_in, read_file

_OPTIMIZER = re.compile(r"(?:[a-z0-9]+_)?zero_pp_rank_(\d{1,6})_mp_rank_00_optim_states\.pt")
_OTHER_PARTS = re.compile(r"(?:.*_)?mp_rank_(?!00_)\d+_.*|layer_\d.*|.*expert_\d.*")
_ACCELERATE = "pytorch_model"
_TAG_BYTES = 255


@dataclass(frozen=True, slots=True)
class RankFiles:
    """A folder of ranks' files: ``optimizers`` are those of the optimizer, by rank and name.
    ``universal``: it has a folder for each parameter instead. ``beside`` names the folders of
    other models."""

    folder: str
    optimizers: tuple[tuple[int, str], ...]
    universal: bool = False
    beside: tuple[str, ...] = ()


def find(path: str) -> RankFiles | None:
    """The ranks' files in a folder, or in the one below it that ``latest`` names. Several below it
    are those of a run; weights beside them are what the folder is known for."""
    own = _in_folder(path)
    if own is not None:
        return own
    tag = ""
    with suppress(InputError, ValueError):
        tag = str(read_file(os.path.join(path, "latest"), _TAG_BYTES), "utf-8").strip()
    if not is_plain_name(tag):
        return None
    there = _in_folder(os.path.join(path, tag))
    if there is None:
        return None
    if is_checkpoint_folder(path):
        return None
    others = tuple(
        name
        for name in names_in(path)
        if name != tag and _in_folder(os.path.join(path, name)) is not None
    )
    if _ACCELERATE in (tag, *others):
        return replace(there, beside=others)
    return None if others else there


def _in_folder(path: str) -> RankFiles | None:
    names = names_if_any(path)
    if not any(name.endswith("model_states.pt") for name in names):
        return None
    if is_folder(os.path.join(path, "zero")):
        return RankFiles(path, (), universal=True)
    if any(map(_OTHER_PARTS.fullmatch, names)):
        return None
    found = filter(None, map(_OPTIMIZER.fullmatch, names))
    optimizers = tuple(sorted((int(each[1]), each[0]) for each in found))
    return RankFiles(path, optimizers) if optimizers else None


def _holds(path: str) -> bool:
    return is_folder(path) and find(path) is not None


FORMAT = Format("zero", (), lambda head: False, Later("zero.opened:open_zero"), holds=_holds)
