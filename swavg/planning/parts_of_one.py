"""Inputs that are the parts of one checkpoint, going by the names of files and their folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence

from swavg.formats.checkpoint import Checkpoint
from swavg.formats.composite import find_composite
from swavg.formats.part_names import part_mark, rank_mark, without_numbers
from swavg.planning.findings import Finding
from swavg.storage.paths import absolute


def parts_of_one(checkpoints: Sequence[Checkpoint], shown: Sequence[str]) -> Iterator[Finding]:
    """The refusal of such inputs."""
    first: dict[str, int] = {}
    namesakes: Counter[str] = Counter()
    for number, checkpoint in enumerate(checkpoints):
        path = absolute(checkpoint.path)
        namesakes[os.path.dirname(path) + without_numbers(os.path.basename(path))] += 1
        part = part_mark("/".join(path.split(os.sep)[-2:])) or rank_mark(path)
        if part:
            first.setdefault(part, number)
    if len(first) < 2:
        return
    (part, one), (_, other) = list(first.items())[:2]
    message = f"{shown[one]} and {shown[other]} are parts (shards or ranks) of one checkpoint"
    if "-of-" in part:
        folder = os.path.dirname(checkpoints[one].path) or "."
        hint = f"Give the folder that holds all shards of a checkpoint, here {folder}."
    elif "zero_" in part:
        folder = os.path.dirname(checkpoints[one].path) or "."
        hint = f"Give the folder that holds the files of all ranks, here {folder}."
    else:
        path = absolute(checkpoints[one].path)
        folder, name = os.path.split(path)
        several = namesakes[folder + without_numbers(name)] > 1
        of_rank = bool(part_mark(os.path.basename(folder)))
        if of_rank:
            folder = os.path.dirname(folder)
        if of_rank and several:
            # A file for each step in the folder of a rank (NeMo).
            own = os.path.dirname(checkpoints[one].path)
            hint = f"Average those of each part alone, such as {own}."
        elif find_composite(folder) is not None:
            hint = f"Give the folders that hold all parts of a checkpoint, such as {folder}."
        else:
            mark = part_mark(name) or rank_mark(path)
            hint = f"Average those of each part alone, such as with pattern='*{mark}*'."
    yield Finding("parts", "refuse", message, hint)
