"""Several files of one step in a searched folder: the same bytes count once, others are refused."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import combinations, product

from swavg.errors import InputError, RequestError, some
from swavg.formats.part_names import rank_mark
from swavg.formats.parts import open_whole
from swavg.series.candidates import Candidate, open_inside
from swavg.series.families import members, pattern_for
from swavg.series.model import Series, Snapshot, Unit, label
from swavg.storage.fingerprints import same_bytes
from swavg.storage.paths import absolute, find_file, is_file, names_in
from swavg.storage.pool import Pool
from swavg.storage.sources import Source

_LISTED = 4


def without_twins(
    candidates: Sequence[Candidate], unit: Unit | None, notes: list[str], *, look: bool
) -> list[Candidate]:
    """Of files with the same bytes in a searched folder that may be of one step, the one whose
    name says the most. Those of one step that differ know of each other. With ``look`` files are
    read: without, all of one step differ."""
    dropped: set[int] = set()
    for first, second in _pairs(candidates, unit):
        if dropped & {id(first), id(second)} or not _may_be_of_one_step(first, second):
            continue
        if look and _are_the_same(first.path, second.path):
            better, worse = sorted((first, second), key=_says_most)
            dropped.add(id(worse))
            notes.append(f"ignored {label(worse.path)}: the same bytes as {label(better.path)}")
            continue
        # Names without steps may be of several runs, each at its end.
        named = first.from_name or second.from_name
        if not named or unit not in first.counts or unit not in second.counts:
            continue
        if look:
            open_inside(first)
            open_inside(second)
        if first.recipe is second.recipe is None and _may_be_of_one_step(first, second):
            first.rivals.append(second.path)
            second.rivals.append(first.path)
    return [candidate for candidate in candidates if id(candidate) not in dropped]


def _pairs(
    candidates: Sequence[Candidate], unit: Unit | None
) -> Iterator[tuple[Candidate, Candidate]]:
    """Those in the same folder that may be of the same step: one without any may be of each. Where
    no steps are known, those that are called copies, and the others."""
    groups: dict[tuple[str, int | None], list[Candidate]] = {}
    for candidate in candidates:
        if candidate.searched:
            folder = os.path.dirname(absolute(candidate.path))
            step = None if unit is None else candidate.counts.get(unit)
            groups.setdefault((folder, step), []).append(candidate)
    for (folder, step), group in groups.items():
        if step is not None:
            yield from combinations(group, 2)
            yield from product(group, groups.get((folder, None), ()))
        elif unit is None:
            copies = [each for each in group if each.name.is_copy or each.name.marks]
            yield from product([each for each in group if each not in copies], copies)


def _says_most(candidate: Candidate) -> tuple[bool, int]:
    return not candidate.from_name, len(candidate.path)


def _may_be_of_one_step(first: Candidate, second: Candidate) -> bool:
    return all(
        first.counts[each] == second.counts[each] for each in first.counts.keys() & second.counts
    )


def _are_the_same(first: str, second: str) -> bool:
    try:
        with Pool() as pool:
            return same_bytes(pool, _sources(first), _sources(second))
    except InputError:
        # What is wrong with it is said when it is averaged.
        return False


def _sources(path: str) -> Sequence[Source]:
    return (find_file(path),) if is_file(path) else open_whole(path).sources


def check_equal_steps(chosen: Series) -> None:
    """RequestError for a chosen snapshot if its folder has a different file of the same step: one
    of them is no snapshot of the run, or they are of two runs. Paths that were given are not
    judged."""
    for snapshot in chosen.snapshots:
        if snapshot.rivals:
            raise _of_one_step(snapshot, f"{chosen.unit} {snapshot.step}")


def _of_one_step(snapshot: Snapshot, step: str) -> RequestError:
    folder = os.path.dirname(absolute(snapshot.path))
    rivals = [os.path.basename(path) for path in (snapshot.path, *snapshot.rivals)]
    families = {
        family: [*own]
        for family, own in members(names_in(folder)).items()
        if not own.keys().isdisjoint(rivals)
    }
    # The run has the most files, and the shortest names.
    ordered = sorted(families, key=lambda family: (-len(families[family]), len(family), family))
    first, second = sorted(rivals, key=lambda name: (len(name), name))[:2]
    problem = f"{first} and {second} are of the same {step} and differ: "
    ranks = all(rank_mark(os.path.join(folder, name)) for name in (first, second))
    if ranks:
        problem += "they are parts (ranks) of one checkpoint"
    elif len(families) > 1 and all(len(own) > 1 for own in families.values()):
        kinds = [f"{family} ({len(families[family])} files)" for family in ordered]
        problem += f"there are several series, {some(kinds, _LISTED)}"
    else:
        problem += "which of them belongs to the run is not known"
    hint = "Give the checkpoints themselves instead of their folder."
    for family in ordered:
        if re.search(r"-v\d+\b", family):
            # A second version is not what was meant to be kept.
            continue
        others = [name for each in families if each != family for name in families[each]]
        pattern = pattern_for(family, families[family], others)
        if pattern is not None and ranks:
            hint = f"Average those of each rank alone, such as with pattern='{pattern}'."
        elif pattern is not None:
            hint = f"Choose by name with pattern='{pattern}', or g{hint[1:]}"
        if pattern is not None:
            break
    return RequestError(f"{problem}.", hint=hint)
