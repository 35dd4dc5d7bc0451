"""What a folder is: one checkpoint, parts of one, or a run with checkpoints in it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence

from swavg.errors import InputError, some
from swavg.formats.composite import Composite, components, find_composite
from swavg.formats.configuration import is_configuration, is_training_state
from swavg.formats.folder import lone_weights
from swavg.formats.part_names import but_for_steps
from swavg.formats.parts import open_parts
from swavg.formats.places import format_at, is_one_folder
from swavg.formats.tensorflow import INDEX, prefixes_in
from swavg.series.families import members
from swavg.series.inside import averages_inputs
from swavg.series.model import is_generic, labels
from swavg.series.names import SUFFIXES, is_shard, may_be_data, read_name
from swavg.storage.paths import absolute, is_folder, names_in

_LISTED = 4


def is_one_checkpoint(path: str, notes: list[str]) -> bool:
    """Whether a folder is one checkpoint, rather than a place where a run keeps its own."""
    composite = find_composite(path) is not None
    if not composite and not is_one_folder(path):
        # One that is called after a step may have parts of any name.
        return bool(read_name(os.path.basename(absolute(path))).counts) and _has_parts(path)
    names = listed(path)
    # Data of loaders has numbers, too: loader_state_0.pth.
    own = format_at(path)
    if own is not None and own.folder and not any(name.endswith(".index") for name in names):
        return True
    if not composite and (_is_average_of_a_run(path, names) or _has_several(path, names)):
        return False
    usual = composite or any(
        name.endswith(".index.json")
        or (is_generic(name) and name.endswith((".safetensors", ".bin")) and not is_shard(name))
        for name in names
    )
    snapshots = [
        name
        for name in names
        if name.endswith(SUFFIXES)
        and read_name(name).counts
        and not may_be_data(name)
        and not is_training_state(name)
    ]
    # checkpoint-100/checkpoint-100.pt beside a configuration
    one_of_many = len(snapshots) == 1 and bool(read_name(os.path.basename(absolute(path))).counts)
    if snapshots and not usual and not (one_of_many and any(map(is_configuration, names))):
        # A lone safetensors file among a run's snapshots does not make their folder a checkpoint.
        return False
    inner = _snapshots_in(path, names, composite=composite)
    if inner and not composite and not is_one_folder(path, any_name=False):
        # A file beside a run's snapshots, as is its configuration.
        return False
    if inner and format_at(path) is None:
        notes.append(
            f"{path} is a checkpoint itself and was taken as one; to choose among"
            f" {labels(inner)} in it, give --pattern '{_pattern_of(inner)}'"
        )
    return True


def _is_average_of_a_run(path: str, names: Sequence[str]) -> bool:
    """Whether what makes a folder a checkpoint is an average that swavg wrote beside others."""
    average = None if format_at(path) is not None else lone_weights(path)
    if average is None or not averages_inputs(os.path.join(path, average)):
        return False
    return any(
        is_snapshot(os.path.join(path, name))
        if is_folder(os.path.join(path, name))
        else name.endswith(SUFFIXES) and not is_training_state(name)
        for name in names
        if name != average and (read_name(name).counts or may_be_data(name))
    )


def _has_several(path: str, names: Sequence[str]) -> bool:
    """Whether a folder has several checkpoints of TensorFlow's: one is the latest, and the folder
    is a run."""
    indices = [name for name in names if name.endswith(INDEX)]
    return len(indices) > 1 and format_at(path) is not None and len(prefixes_in(path)) > 1


def check_one_step(path: str) -> None:
    """InputError if a folder has folders of ranks, and these a file for each step (NeMo)."""
    composite = find_composite(path)
    if composite is None:
        return
    folders: dict[str, dict[str, set[int]]] = {}
    for part in composite.parts:
        folder, name = os.path.split(part)
        facts = read_name(name)
        if folder and facts.family is not None and "step" in facts.counts:
            own = folders.setdefault(folder, {}).setdefault(facts.family, set())
            own.add(facts.counts["step"])
    for folder, families in folders.items():
        steps = [str(step) for step in sorted(max(families.values(), key=len, default=()))]
        if len(steps) > 1:
            raise InputError(
                composite.path,
                f"holds ranks of {len(steps)} steps, {some(steps, _LISTED)}, not a folder for each",
                hint="Average those of each rank alone, such as"
                f" {shlex.quote(os.path.join(composite.path, folder))}.",
            )


def _snapshots_in(path: str, names: Sequence[str], *, composite: bool) -> list[str]:
    """Folders with steps in a checkpoint's own that are checkpoints."""
    return [
        os.path.join(path, name)
        for name in names
        if read_name(name).counts
        and (is_snapshot if composite else is_one_folder)(os.path.join(path, name))
    ]


def _pattern_of(paths: Sequence[str]) -> str:
    """A glob for the most of these that have one name but for their steps."""
    families = members([os.path.basename(path) for path in paths])
    return max(families, key=lambda family: len(families[family]))


def pattern_inside(path: str, notes: list[str]) -> str | None:
    """A glob for the snapshots in a folder that is a checkpoint itself (the model at the end of a
    run of Hugging Face's), None if there are none."""
    if not is_folder(path) or not is_one_checkpoint(path, []):
        return None
    composite = find_composite(path) is not None
    inner = _snapshots_in(path, listed(path), composite=composite)
    if not inner:
        return None
    pattern = _pattern_of(inner)
    notes.append(f"chosen among the checkpoints '{pattern}' in {path}, not with the model there")
    return pattern


def is_snapshot(path: str, *, stepped: bool = True) -> bool:
    """Whether a folder in a run is a checkpoint; one that is called after a step may have parts of
    any name, but no steps of its own."""
    if not is_folder(path):
        return False
    if format_at(path) is not None:
        return not _has_several(path, listed(path))
    if is_one_folder(path, any_name=stepped) or find_composite(path) is not None:
        return not _is_average_of_a_run(path, listed(path))
    return stepped and _has_components(components(path))


def _has_parts(path: str) -> bool:
    found = components(path)
    below = any(os.sep in name for name in found.parts)
    return (below or len(set(map(but_for_steps, found.parts))) > 1) and _has_components(found)


def _has_components(found: Composite) -> bool:
    """Whether all weights in a folder have names that say what they are: no step, no copy."""
    names = [each for name in found.parts for each in name.split(os.sep)]
    facts = [(read_name(name), is_generic(name)) for name in names]
    return bool(names) and not any(f.counts or (f.is_copy and not generic) for f, generic in facts)


def are_composites(paths: Sequence[str]) -> bool:
    """Whether several folders, which are no checkpoints otherwise, hold the parts of one each:
    weights of the same names, which are no steps. Of more names in one than in another too, as
    those cannot be a series either. Opens the files, to tell what weights are."""
    if len(paths) < 2 or any(not is_folder(p) or is_one_checkpoint(p, []) for p in paths):
        return False
    found = [components(path) for path in paths]
    if not all(map(_has_components, found)):
        return False
    if len({but_for_steps(name) for each in found for name in each.parts}) < 2:
        return False
    try:
        names = [list(open_parts(each).parts) for each in found]
    except InputError:
        # Where they are averaged it is said.
        names = [list(each.parts) for each in found]
    kinds = [set(map(but_for_steps, own)) for own in names]
    if any(len(own) < len(of) for own, of in zip(kinds, names, strict=True)):
        # Names that differ by a number are a series.
        return False
    return len(set().union(*kinds)) > 1 and bool(set.intersection(*kinds))


def listed(folder: str) -> list[str]:
    """The names in a folder, numbers in their order: 2 before 10."""
    return sorted(names_in(folder), key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]
