"""Folders of a run: what in them is a checkpoint, and what is left aside."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress

from swavg.errors import InputError, some
from swavg.formats.composite import Composite, components, find_composite
from swavg.formats.configuration import is_configuration, is_training_state
from swavg.formats.files import FILES
from swavg.formats.folder import explain_files, explain_folder, lone_weights
from swavg.formats.orbax import UNFINISHED
from swavg.formats.part_names import but_for_steps
from swavg.formats.parts import open_parts
from swavg.formats.places import format_at, is_one_folder
from swavg.series.candidates import Candidate
from swavg.series.families import members
from swavg.series.inside import averages_inputs
from swavg.series.model import is_generic, labels
from swavg.series.names import SUFFIXES, is_shard, may_be_data, read_name
from swavg.storage.paths import (
    absolute,
    is_file,
    is_folder,
    is_link,
    list_ahead,
    names_in,
    read_file,
    status,
)
from swavg.storage.temporary import TEMPORARY

_LISTED = 4
_MOST = 1000
"""Folders that are looked into at most, to find the one that has checkpoints."""
_HEAD = 512
_PARTIAL = (".tmp", ".temp", ".partial", ".part", TEMPORARY, ".incomplete", ".lock")

_POINTERS = ("latest", "latest_checkpointed_iteration.txt", "latest_checkpoint", "last_checkpoint",
             "checkpoint")  # fmt: skip
"""Text files that say which checkpoint of a run is the newest."""


def without_pointers(paths: Sequence[str], notes: list[str]) -> list[str]:
    """Given paths without those of text that names one of the others (``run/*``)."""
    left = [
        path
        for path in paths
        if os.path.basename(path) in _POINTERS and is_file(path) and not _looks_like_one(path)
    ]
    if not left or len(left) == len(paths):
        return [*paths]
    notes.append(f"ignored {labels(left)}: text that names a checkpoint")
    return [path for path in paths if path not in left]


def is_one_checkpoint(path: str, notes: list[str]) -> bool:
    """Whether a folder is one checkpoint, rather than a place where a run keeps its own."""
    composite = find_composite(path) is not None
    if not composite and not is_one_folder(path):
        # One that is called after a step may have parts of any name.
        return bool(read_name(os.path.basename(absolute(path))).counts) and _has_parts(path)
    names = _listed(path)
    if not composite and _is_average_of_a_run(path, names):
        return False
    usual = composite or any(
        name.endswith(".index.json")
        or (is_generic(name) and name.endswith((".safetensors", ".bin")) and not is_shard(name))
        for name in names
    )
    snapshots = [
        name
        for name in names
        if name.endswith(SUFFIXES) and read_name(name).counts and not may_be_data(name)
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
        _is_snapshot(os.path.join(path, name))
        if is_folder(os.path.join(path, name))
        else name.endswith(SUFFIXES) and not is_training_state(name)
        for name in names
        if name != average and (read_name(name).counts or may_be_data(name))
    )


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
        and (_is_snapshot if composite else is_one_folder)(os.path.join(path, name))
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
    inner = _snapshots_in(path, _listed(path), composite=composite)
    if not inner:
        return None
    pattern = _pattern_of(inner)
    notes.append(f"chosen among the checkpoints '{pattern}' in {path}, not with the model there")
    return pattern


def _is_snapshot(path: str, *, stepped: bool = True) -> bool:
    """Whether a folder in a run is a checkpoint; one that is called after a step may have parts of
    any name, but no steps of its own."""
    if not is_folder(path):
        return False
    if format_at(path) is not None:
        # Of several of TensorFlow's one is the latest, and their folder is a run.
        return sum(name.endswith(".index") for name in _listed(path)) < 2
    if is_one_folder(path, any_name=stepped) or find_composite(path) is not None:
        return True
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


def search(folder: str, pattern: str | None, notes: list[str]) -> list[Candidate]:
    """The checkpoints in a folder that match ``pattern``; ``notes`` get what was ignored. Where it
    has none, those in the one folder anywhere below that has some (``version_0/checkpoints``).
    InputError if there are none, or several such folders."""
    found: list[Candidate] = []
    partial, training, shards, foreign = [], [], [], []
    names = _listed(folder)
    list_ahead(folder, names)
    for name in names:
        if pattern is not None and not fnmatch.fnmatchcase(name, pattern):
            continue
        path = os.path.join(folder, name)
        facts = read_name(name)
        if is_folder(path):
            unfinished = name.endswith(_PARTIAL) or UNFINISHED in name
            if unfinished or (name.startswith(".") and facts.counts):
                partial.append(path)
            elif _is_snapshot(path, stepped=bool(facts.counts)):
                found.append(Candidate(path, facts, searched=True))
            elif facts.counts:
                foreign.append(path)
            continue
        if name.endswith(".index") and format_at(path) is None:
            # Of something else.
            continue
        whole = name.lower()
        while whole.endswith(_PARTIAL):
            whole = whole[: whole.rindex(".")]
        weighty = whole.endswith(SUFFIXES) or ("." not in whole and bool(facts.counts))
        if not weighty and not (facts.counts and _looks_like_one(path)):
            continue
        if whole != name.lower() or name.startswith(".") or _is_empty(path):
            partial.append(path)
        elif is_training_state(name):
            training.append(path)
        elif is_shard(name):
            shards.append(path)
        elif name.lower().endswith(SUFFIXES) or _looks_like_one(path):
            found.append(Candidate(path, facts, searched=True))
    data = [each.path for each in found if may_be_data(each.path)]
    others = (each.path for each in found if each.path not in data)
    if data and (pattern is not None or all(map(averages_inputs, others))):
        # What swavg made of arrays does not make them data.
        data = []
    found = [each for each in found if each.path not in data]
    for ignored, what in (
        (data, "arrays, beside checkpoints of other formats"),
        (partial, "partial, temporary or empty"),
        (training, "training state, not weights"),
        (shards, "a part of a checkpoint without its index"),
        (foreign, "a folder in which swavg finds no checkpoint"),
    ):
        if ignored:
            notes.append(f"ignored {labels(ignored)}: {what}")
    if not found and pattern is None:
        explain_folder(folder, _listed(folder))
    if found:
        return found
    places, every = places_below(folder)
    ignored = [*partial, *training, *shards, *foreign]
    if len(places) == 1 and every and not ignored:
        notes.append(f"the checkpoints of {places[0]}, the one folder in {folder} that has some")
        found = search(places[0], pattern, notes)
        if not all(map(_seems_data, found)):
            return found
    raise _nothing_in(folder, pattern, ignored, places)


def _seems_data(found: Candidate) -> bool:
    """Whether neither the suffix nor the name of a file says that it has weights."""
    told = found.name.counts.keys() & {"step", "epoch"}
    return may_be_data(found.path) and not (told or is_generic(os.path.basename(found.path)))


def _nothing_in(
    folder: str, pattern: str | None, ignored: Sequence[str], below: Sequence[str]
) -> InputError:
    problem = "holds no checkpoints"
    if pattern is not None:
        problem += f" that match '{pattern}'"
    if ignored:
        problem += f" but what was ignored: {labels(ignored)}"
    if not below and pattern is None:
        explain_files(folder, _listed(folder))
    hint = f"There are some in {some(below, _LISTED)}." if below else None
    return InputError(folder, problem, hint=hint)


def places_below(folder: str) -> tuple[list[str], bool]:
    """The folders below, the nearest first, that a series may be searched in; and whether no
    more can be there."""
    pending = [folder]
    places = (os.path.dirname(p) if is_one_checkpoint(p, []) else p for p in _below(pending))
    found = [place for place in dict.fromkeys(places) if place != folder]
    return found, len(pending) < _MOST


def _below(pending: list[str]) -> Iterator[str]:
    """The folders below the only one of ``pending`` with files that may be checkpoints, the nearest
    first, but hidden ones; all that are looked into are added to it."""
    folder = pending[0]
    for path in pending:
        with suppress(InputError):
            for name in _listed(path):
                if name.startswith("."):
                    continue
                inner = os.path.join(path, name)
                if is_folder(inner) and not is_link(inner) and len(pending) < _MOST:
                    pending.append(inner)
                elif path != folder and name.lower().endswith(SUFFIXES):
                    yield path
                    break


def _listed(folder: str) -> list[str]:
    """The names in a folder, numbers in their order: 2 before 10."""
    return sorted(names_in(folder), key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _is_empty(path: str) -> bool:
    there = status(path)
    # A link to nowhere.
    return there is None or there.size == 0


def _looks_like_one(path: str) -> bool:
    """Whether a file without a usual suffix starts as checkpoints do."""
    try:
        head = read_file(path, _HEAD)
    except InputError:
        return False
    # Of a damaged one it is told why it is none.
    known = head.startswith((b"PK\3\4", b"\x80")) or head[8:9] == b"{"
    return known or any(row.recognises(head) for row in FILES.values())
