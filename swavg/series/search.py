"""Folders of a run: what in them is a checkpoint, and what is left aside."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

from swavg.errors import InputError, some
from swavg.formats.configuration import is_training_state
from swavg.formats.dcp.place import DATA, METADATA, is_unfinished, unfinished
from swavg.formats.files import FILES
from swavg.formats.folder import WEIGHT_SUFFIXES, explain_files, explain_folder
from swavg.formats.orbax import UNFINISHED
from swavg.formats.places import format_at
from swavg.series.candidates import Candidate
from swavg.series.folders import is_one_checkpoint, is_snapshot, listed
from swavg.series.inside import averages_inputs
from swavg.series.model import is_generic, labels
from swavg.series.names import SUFFIXES, is_shard, may_be_data, read_name
from swavg.storage.paths import (
    is_file,
    is_folder,
    is_link,
    list_ahead,
    read_file,
    status,
)
from swavg.storage.temporary import TEMPORARY

_LISTED = 4
_MOST = 1000
"""Folders that are looked into at most, to find the one that has checkpoints."""
_HEAD = 512
_PARTIAL = (".tmp", ".temp", ".partial", ".part", TEMPORARY, ".incomplete", ".lock")

_WEIGHTY = (*SUFFIXES, DATA, "_metadata")
"""What names of files in checkpoints end with; Orbax's have but the last one."""
_NO_FOLDER = (".keras", ".weights.h5", ".msgpack")
"""Suffixes of files whose folder is no checkpoint, though it may be called after the step."""
_ARRAYS = "arrays, beside checkpoints of other formats"
_INCOMPLETE = "partial, temporary or empty"
_UNFINISHED = f"not finished: there is no {METADATA} yet"
_TRAINING = "training state, not weights"
_SHARD = "a part of a checkpoint without its index"
_FOREIGN = "a folder in which swavg finds no checkpoint"
_IGNORED = (_ARRAYS, _INCOMPLETE, _UNFINISHED, _TRAINING, _SHARD, _FOREIGN)
"""Why what lies in a run's folder is ignored, in the order in which it is told."""
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


def search(folder: str, pattern: str | None, notes: list[str]) -> list[Candidate]:
    """The checkpoints in a folder that match ``pattern``; ``notes`` get what was ignored. Where it
    has none, those in the one folder anywhere below that has some (``version_0/checkpoints``).
    InputError if there are none, or several such folders."""
    found: list[Candidate] = []
    ignored: dict[str, list[str]] = {why: [] for why in _IGNORED}
    names = listed(folder)
    list_ahead(folder, names)
    for name in names:
        if pattern is not None and not fnmatch.fnmatchcase(name, pattern):
            continue
        path = os.path.join(folder, name)
        one = _of_folder(path) if is_folder(path) else _of_file(path, names)
        if isinstance(one, Candidate):
            found.append(one)
        elif one is not None:
            ignored[one].append(path)
    data = [each.path for each in found if may_be_data(each.path)]
    others = (each.path for each in found if each.path not in data)
    # What swavg made of arrays does not make them data.
    if data and pattern is None and not all(map(averages_inputs, others)):
        found = [each for each in found if each.path not in data]
        ignored[_ARRAYS] = data
    notes += (f"ignored {labels(paths)}: {why}" for why, paths in ignored.items() if paths)
    if found:
        return found
    if pattern is None:
        explain_folder(folder, listed(folder))
    places, every = places_below(folder)
    aside = [path for paths in ignored.values() for path in paths]
    if len(places) == 1 and every and not aside:
        notes.append(f"the checkpoints of {places[0]}, the one folder in {folder} that has some")
        found = search(places[0], pattern, notes)
        if not all(map(_seems_data, found)):
            return found
    if ignored[_UNFINISHED]:
        raise unfinished(ignored[_UNFINISHED][-1])
    raise _nothing_in(folder, pattern, aside, places)


def _of_folder(path: str) -> Candidate | str | None:
    """The checkpoint that a folder in that of a run stands for, or why it is ignored; None for one
    of other things."""
    name = os.path.basename(path)
    facts = read_name(name)
    if name.endswith(_PARTIAL) or UNFINISHED in name or (name.startswith(".") and facts.counts):
        return _INCOMPLETE
    if facts.counts and is_unfinished(path):
        return _UNFINISHED
    if is_snapshot(path, stepped=bool(facts.counts)):
        return Candidate(path, facts, searched=True)
    if facts.counts and (file := _only_file(path)) is not None:
        return Candidate(file, facts, searched=True)
    return _FOREIGN if facts.counts else None


def _of_file(path: str, names: Sequence[str]) -> Candidate | str | None:
    """The same of a file that lies among these ``names``."""
    name = os.path.basename(path)
    facts, whole = read_name(name), name.lower()
    if name.endswith(".index") and format_at(path) is None:
        start = f"{name.removesuffix('.index')}.data-"
        if not any(other.startswith(start) for other in names):
            # Of something else; one that was cut short says so where it is opened.
            return None
    while whole.endswith(_PARTIAL):
        whole = whole[: whole.rindex(".")]
    weighty = whole.endswith(SUFFIXES) or ("." not in whole and bool(facts.counts))
    if not weighty and not (facts.counts and _looks_like_one(path)):
        return None
    if whole != name.lower() or name.startswith(".") or _is_empty(path):
        return _INCOMPLETE
    if is_training_state(name):
        return _TRAINING
    if is_shard(name):
        return _SHARD
    one = whole.endswith(SUFFIXES) or _looks_like_one(path)
    return Candidate(path, facts, searched=True) if one else None


def _only_file(folder: str) -> str | None:
    """The one file of weights in a step's folder (``checkpoint-10/flax_model.msgpack``)."""
    files = [
        name
        for name in listed(folder)
        if name.endswith(WEIGHT_SUFFIXES) and not is_training_state(name)
    ]
    return (
        os.path.join(folder, files[0])
        if len(files) == 1 and files[0].endswith(_NO_FOLDER)
        else None
    )


def _seems_data(found: Candidate) -> bool:
    """Whether neither the suffix nor the name of a file says that it has weights."""
    told = found.name.counts.keys() & {"step", "epoch"}
    return may_be_data(found.path) and not (told or is_generic(os.path.basename(found.path)))


def _nothing_in(
    folder: str, pattern: str | None, ignored: Sequence[str], below: Sequence[str]
) -> InputError:
    problem = "holds no checkpoints"
    ignored = [path for path in ignored if path not in below]
    if pattern is not None:
        problem += f" that match '{pattern}'"
    if ignored:
        problem += f" but what was ignored: {labels(ignored)}"
    if not below and pattern is None:
        explain_files(folder, listed(folder))
    hint = f"There are some in {some(below, _LISTED)}." if below else None
    return InputError(folder, problem, hint=hint)


def places_below(folder: str) -> tuple[list[str], bool]:
    """The folders below, the nearest first, that a series may be searched in; and whether no
    more can be there."""
    pending = [folder]
    places = (_place(path, folder) for path in _below(pending))
    found = [place for place in dict.fromkeys(places) if place != folder]
    return found, len(pending) < _MOST


def _place(path: str, top: str) -> str:
    """The folder below ``top`` that a series with what lies in ``path`` may be searched in: not one
    in a step's folder of many (``step-10/optim``)."""
    stepped = bool(read_name(os.path.basename(path)).counts)
    is_one = is_one_checkpoint(path, []) or (
        stepped and (is_unfinished(path) or _only_file(path) is not None)
    )
    place = os.path.dirname(path) if is_one else path
    # It may end in slashes.
    while len(path := os.path.dirname(path)) > len(top):
        if format_at(path) is not None and is_one_checkpoint(path, []):
            place = os.path.dirname(path)
    return place


def _below(pending: list[str]) -> Iterator[str]:
    """The folders below the only one of ``pending`` with files that may be checkpoints, the nearest
    first, but hidden ones; all that are looked into are added to it."""
    folder = pending[0]
    for path in pending:
        with suppress(InputError):
            for name in listed(path):
                if name.startswith("."):
                    continue
                inner = os.path.join(path, name)
                if is_folder(inner) and not is_link(inner) and len(pending) < _MOST:
                    pending.append(inner)
                elif path != folder and name.lower().endswith(_WEIGHTY):
                    yield path
                    break


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
