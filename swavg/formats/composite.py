"""Composite checkpoints: folders whose parts are checkpoints, each averaged with its namesake.

A part is a file or a folder of weights: a rank, a component of a pipeline, one of several models.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from swavg.formats.configuration import is_configuration, is_training_state, small_json
from swavg.formats.files import recognised
from swavg.formats.folder import (
    LOGS,
    WEIGHT_SUFFIXES,
    explain_folder,
    hub_snapshot,
    is_checkpoint_folder,
    weights_stem,
)
from swavg.formats.part_names import WEIGHTS, part_mark, rank_of, without_numbers
from swavg.formats.places import format_at, is_one_folder
from swavg.storage.paths import files_below, is_file, is_folder, names_in
from swavg.storage.temporary import TEMPORARY

_MAY_BE_PARTS = (*WEIGHTS, ".tar", ".th")


@dataclass(frozen=True, slots=True)
class Composite:
    """A folder of parts, by names relative to it; its own weights are the part of the empty name.

    Whether a file among the ``parts`` holds weights, its content says. ``side_files`` go along
    (paths by name); ``left_out`` names what does not.
    """

    path: str
    parts: tuple[str, ...]
    side_files: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def place(self, part: str) -> str:
        """The path of a part."""
        return os.path.join(self.path, part) if part else self.path


@dataclass(slots=True)
class _Contents:
    """A folder's files, sorted by what they are."""

    path: str
    parts: list[str] = field(default_factory=list)
    side: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """A file, by its name or its first bytes."""
        path = os.path.join(self.path, name)
        lowered = os.path.basename(name).lower()
        if is_training_state(lowered) and not is_configuration(lowered):
            self.left_out.append(name)
        elif lowered.endswith(_MAY_BE_PARTS) or ("." not in lowered and _looks_like_weights(path)):
            self.parts.append(name)
        else:
            self.add_other(name)

    def add_other(self, name: str) -> None:
        """A file that is no part."""
        if name.endswith(WEIGHT_SUFFIXES) or name in LOGS:
            self.left_out.append(name)
        else:
            self.side[name] = os.path.join(self.path, name)

    def composite(self) -> Composite:
        return Composite(self.path, tuple(self.parts), self.side, tuple(sorted(self.left_out)))


def find_composite(path: str) -> Composite | None:
    """The parts of a folder that is known for them: by an index of its components, or by names of
    ranks. None for other folders, and for files. InputError if it cannot be read."""
    if not is_folder(path) or format_at(path := hub_snapshot(path)) is not None:
        return None
    names = _listed(path)
    for index, parts_in in (("model_index.json", _components_in), ("modules.json", _modules_in)):
        if index in names:
            found = _pipeline(path, names, parts_in(small_json(os.path.join(path, index))))
            if found is not None:
                return found
    if is_checkpoint_folder(path):
        return _numbered_models(path, names)
    speechbrain = "CKPT.yaml" in names or os.path.basename(path.rstrip("/")).startswith("CKPT+")
    return components(path) if speechbrain or _are_ranks(path, names) else None


def as_composite(path: str) -> Composite | None:
    """The parts of a checkpoint that is a folder but not a plain one. InputError if it cannot be
    read, or is of a kind that is not."""
    path = hub_snapshot(path)
    found = find_composite(path)
    if found is None and is_folder(path) and not is_one_folder(path):
        explain_folder(path, names_in(path))
        found = components(path)
    return found if found is not None and found.parts else None


def components(path: str) -> Composite:
    """The parts that a folder has if it is a composite: files and folders that may hold weights;
    files of folders below it if those are named after ranks, or if there are no others."""
    found = _Contents(path)
    folders: list[str] = []
    for name in _listed(path):
        full = os.path.join(path, name)
        if is_file(full):
            found.add(name)
        elif is_folder(full):
            whole = is_one_folder(full, any_name=False)
            (found.parts if whole else folders).append(name)
    ranks = [name for name in folders if part_mark(name) or rank_of(name) is not None]
    opened = ranks or ([] if found.parts else folders)
    for folder in opened:
        for name in _listed(os.path.join(path, folder)):
            if is_file(os.path.join(path, folder, name)):
                found.add(os.path.join(folder, name))
    found.left_out += [name for name in folders if name not in opened]
    return found.composite()


def _are_ranks(path: str, names: Sequence[str]) -> bool:
    """Whether names in a folder are those of ranks, and of one checkpoint only."""
    marks: Counter[tuple[str, str]] = Counter()
    ranks: Counter[tuple[str, int]] = Counter()
    for name in names:
        weighty = name.lower().endswith(_MAY_BE_PARTS) or is_folder(os.path.join(path, name))
        if is_training_state(name) or not weighty:
            continue
        mark, rank = part_mark(name), rank_of(name)
        if mark and "-of-" not in mark:
            marks[mark, without_numbers(name)] += 1
        elif rank is not None:
            ranks[without_numbers(name), rank] += 1
    if marks:
        return max(marks.values()) == 1
    # Ranks count from 0; best_rank_1 and lora_rank_8 are others.
    stems = {stem for stem, _ in ranks}
    return len(ranks) > 1 and ranks == Counter((s, n) for s in stems for n in range(len(ranks)))


def _pipeline(path: str, names: Sequence[str], listed: Sequence[str]) -> Composite | None:
    """A folder of components: those ``listed``, or all folders in it if none are."""
    found = _Contents(path)
    own = "modules.json" in names and is_one_folder(path)
    if "router_config.json" in names:
        # A module of the folder itself has its parts in folders that are not listed.
        listed = []
    for name in names:
        full = os.path.join(path, name)
        if not is_folder(full):
            # Files beside weights go with these.
            if not own:
                found.add_other(name)
            continue
        files = dict(_files_below(path, name))
        # Several of one kind are numbered: controlnet, controlnet_1.
        if listed and name not in listed and re.sub(r"_\d+$", "", name) not in listed:
            found.left_out.append(name)
        elif not any(file.endswith(WEIGHT_SUFFIXES) for file in files):
            found.side |= files
        elif listed or is_one_folder(full):
            found.parts.append(name)
        else:
            found.left_out.append(name)
    if own and (found.parts or found.side):
        # These say themselves what is left out.
        return Composite(path, ("", *found.parts), found.side)
    return found.composite() if found.parts else None


def _numbered_models(path: str, names: Sequence[str]) -> Composite | None:
    """Several models that accelerate saved together: model.safetensors, model_1.safetensors."""
    stems = {weights_stem(name) for name in names}
    more = [
        name
        for name in names
        if (found := re.fullmatch(r"(model|pytorch_model)_\d+\.(safetensors|bin)", name))
        and found[1] in stems
    ]
    return Composite(path, ("", *more)) if more else None


def _components_in(index: object) -> list[str]:
    """The folders that a pipeline's model_index.json lists."""
    if not isinstance(index, dict):
        return []
    return [
        name
        for name, kind in index.items()
        if not name.startswith("_") and isinstance(kind, list) and any(kind)
    ]


def _modules_in(index: object) -> list[str]:
    """Those that the modules.json of sentence-transformers lists."""
    if not isinstance(index, list):
        return []
    paths = [each.get("path") for each in index if isinstance(each, dict)]
    return [each for each in paths if isinstance(each, str) and each]


def _looks_like_weights(path: str) -> bool:
    row = recognised(path)
    return row is not None and not row.data


def _listed(path: str) -> list[str]:
    """The names in a folder, but for hidden and unfinished ones."""
    return [
        name for name in names_in(path) if not name.startswith(".") and not name.endswith(TEMPORARY)
    ]


def _files_below(path: str, folder: str) -> Iterator[tuple[str, str]]:
    """Name and path of the files in a folder of ``path``, at any depth."""
    for full in files_below(os.path.join(path, folder)):
        yield full[len(os.path.join(path, "")) :], full
