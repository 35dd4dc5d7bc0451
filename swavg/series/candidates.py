"""Checkpoints on their way into a series: what counts their steps, and which are copies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from swavg.errors import InputError
from swavg.formats.places import format_at
from swavg.formats.tensors import Shared
from swavg.series.families import is_end, read_names
from swavg.series.inside import Facts, read_inside
from swavg.series.model import Unit, label, labels
from swavg.series.names import NameFacts
from swavg.storage.paths import absolute, is_folder, status


@dataclass(eq=False)
class Candidate:
    """A checkpoint on its way into a series. A folder that is given twice has two of each."""

    path: str
    name: NameFacts
    searched: bool = False
    recipe: str | None = None
    """What swavg wrote into it, if it was searched."""
    shared: Shared | None = None
    inside: Facts | None = None
    unreadable: bool = False
    counts: dict[Unit, int] = field(default_factory=dict)
    rivals: list[str] = field(default_factory=list)
    """Others of the same step, and other bytes."""
    is_end: bool = False
    """By its name what the run left at its end, if it has no step."""

    def __post_init__(self) -> None:
        number = self.name.counts.get("number")
        if number is not None and is_folder(self.path):
            row = format_at(self.path)
            if row is not None and row.by_step:
                self.name = replace(self.name, counts={"step": number})

    @property
    def from_name(self) -> bool:
        return bool(self.name.counts)


def read_together(candidates: Sequence[Candidate]) -> None:
    """Add what names of one folder say beside each other."""
    folders: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        folders.setdefault(os.path.dirname(absolute(candidate.path)), []).append(candidate)
    for group in folders.values():
        names = [os.path.basename(absolute(candidate.path)) for candidate in group]
        read = read_names(names)
        families = {facts.family for facts in read if facts.family is not None}
        for candidate, name, facts in zip(group, names, read, strict=True):
            if not candidate.name.counts:
                candidate.name = facts
                candidate.counts = {**facts.counts, **candidate.counts}
                candidate.is_end = is_end(name, families)


def without_links(candidates: list[Candidate], notes: list[str]) -> list[Candidate]:
    """Of several names of one file in a searched folder, the one that says the most."""
    first: dict[tuple[object, ...], Candidate] = {}
    dropped: list[Candidate] = []
    for candidate in candidates:
        there = status(candidate.path)
        if there is None:
            continue
        known = first.setdefault(there.identity, candidate)
        if known is candidate or not (candidate.searched and known.searched):
            continue
        worse, better = candidate, known
        if candidate.from_name and not known.from_name:
            worse, better = known, candidate
            first[there.identity] = candidate
        dropped.append(worse)
        notes.append(f"ignored {label(worse.path)}: the same file as {label(better.path)}")
    return [candidate for candidate in candidates if candidate not in dropped]


def without_unreadable(candidates: list[Candidate], notes: list[str]) -> list[Candidate]:
    """Found files that have no step and are no checkpoints (``vocab.bin``) are left out."""
    kept, ignored = [], []
    for candidate in candidates:
        if candidate.searched and candidate.unreadable:
            ignored.append(candidate.path)
        else:
            kept.append(candidate)
    if ignored:
        notes.append(f"ignored {labels(ignored)}: not readable as a checkpoint")
    if not kept and ignored:
        # Let the reader say what is wrong.
        read_inside(ignored[0])
    return kept


def without_copies(
    candidates: list[Candidate], unit: Unit | None, notes: list[str]
) -> list[Candidate]:
    """A searched folder without ``best`` and ``last`` copies, if it has snapshots with steps of
    their own."""
    own = {
        count: candidate.path
        for candidate in candidates
        if candidate.from_name
        for count in candidate.counts.items()
    }
    kept = []
    for candidate in candidates:
        # last.ckpt of epoch 3 may be of a later step than the snapshot of epoch 3.
        kinds = [unit] if unit in candidate.counts else [*candidate.counts]
        at = next((kind for kind in kinds if (kind, candidate.counts[kind]) in own), None)
        if not own or not candidate.searched or not candidate.name.is_copy:
            kept.append(candidate)
        elif at is not None:
            count = candidate.counts[at]
            notes.append(
                f"ignored {label(candidate.path)}: it is of {at} {count},"
                f" as is {label(own[at, count])}"
            )
        elif not candidate.counts:
            notes.append(
                f"ignored {label(candidate.path)}: going by its name a copy, and it has no step;"
                " give its path to take it"
            )
        else:
            kept.append(candidate)
    return kept


def common_unit(candidates: Sequence[Candidate], *, search: bool = False) -> Unit | None:
    """The unit that all have but copies of others; with ``search`` those are opened that lack a
    unit which some have."""
    counted = [candidate for candidate in candidates if not candidate.name.is_copy] or candidates
    units: tuple[Unit, ...] = ("step", "epoch", "number")
    for opening in (False, True) if search else (False,):
        for unit in units:
            have = [candidate for candidate in counted if unit in candidate.counts]
            if opening and have:
                for candidate in counted:
                    if unit not in candidate.counts:
                        open_inside(candidate)
                have = [candidate for candidate in counted if unit in candidate.counts]
            if have and len(have) == len(counted):
                return unit
    return None


def repeats(candidates: Sequence[Candidate], unit: Unit) -> bool:
    counts = [c.counts[unit] for c in candidates if unit in c.counts and not c.name.is_copy]
    return len(set(counts)) < len(counts)


def add_steps(candidates: Sequence[Candidate]) -> None:
    """Look for the steps of those that lack one, if some have one (fairseq's checkpoint3.pt and
    checkpoint_3_500.pt)."""
    if any("step" in candidate.counts for candidate in candidates):
        for candidate in candidates:
            if "step" not in candidate.counts:
                open_inside(candidate)


def prevailing_unit(candidates: Sequence[Candidate], notes: list[str]) -> Unit | None:
    """The unit of most; which of them do not have it is said."""
    by_unit: dict[Unit, list[str]] = {}
    for candidate in candidates:
        for unit in candidate.counts:
            by_unit.setdefault(unit, []).append(candidate.path)
    if not by_unit:
        return None
    chosen = max(by_unit, key=lambda unit: (len(by_unit[unit]), unit == "step"))
    others = [c.path for c in candidates if c.counts and chosen not in c.counts]
    if others:
        kinds = sorted({kind for c in candidates if chosen not in c.counts for kind in c.counts})
        notes.append(
            f"ambiguous: {labels(by_unit[chosen])} count in {chosen}s, {labels(others)} in"
            f" {' and '.join(kinds)}s: these were taken to have no {chosen}"
        )
    return chosen


def open_inside(candidate: Candidate) -> None:
    """Add what the checkpoint says to what its name says."""
    if candidate.inside is None:
        try:
            candidate.inside = read_inside(candidate.path, candidate.shared)
        except InputError:
            candidate.unreadable = True
            return
    for unit, count in candidate.inside.counts.items():
        candidate.counts.setdefault(unit, count)
