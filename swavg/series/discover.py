"""From folders and paths to a series: what belongs to it, and in which order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

from swavg.formats.places import format_at
from swavg.formats.tensors import Shared
from swavg.series.candidates import (
    Candidate,
    add_steps,
    common_unit,
    open_inside,
    prevailing_unit,
    read_together,
    repeats,
    without_copies,
    without_links,
    without_unreadable,
)
from swavg.series.equal_steps import without_twins
from swavg.series.folders import (
    are_composites,
    check_one_step,
    is_one_checkpoint,
    pattern_inside,
)
from swavg.series.left_out import without_averages, without_marked
from swavg.series.metrics import beside
from swavg.series.model import Series, Snapshot, StepFrom, Unit, is_generic, labels
from swavg.series.names import NameFacts, read_name
from swavg.series.search import search, without_pointers
from swavg.series.tables import from_file
from swavg.storage.paths import absolute, exists, find_file, is_folder, look_ahead


def discover(
    paths: Iterable[str | os.PathLike[str]],
    *,
    pattern: str | None = None,
    keep_order: bool = False,
    metrics_file: str | os.PathLike[str] | None = None,
    read_inside: bool = True,
    choosing: bool = False,
) -> Series:
    """The series of ``paths``, ordered by training step, with the metrics that lie beside it.

    A folder that is no checkpoint itself is searched for checkpoint files and checkpoint folders
    whose names match the glob ``pattern``; with a pattern, a checkpoint folder is searched too.
    Steps come from the names; where a name has none, the checkpoint is opened, unless
    ``read_inside`` is False. ``keep_order`` leaves the paths as given. ``choosing``: some are to be
    chosen, so one folder that is a checkpoint and has snapshots in it stands for these. InputError
    if a path or the ``metrics_file`` is missing or broken, or a folder holds no checkpoint.
    """
    notes: list[str] = []
    named = without_pointers([os.fspath(path) for path in paths], notes)
    if pattern is None and len(named) == 1:
        check_one_step(named[0])
        pattern = pattern_inside(named[0], notes) if choosing else None
    candidates = without_links(_candidates(named, pattern, notes), notes)
    look_ahead([candidate.path for candidate in candidates])
    shared = Shared()
    for candidate in candidates:
        candidate.shared = shared
        candidate.counts = dict(candidate.name.counts)
        if read_inside and not candidate.counts:
            open_inside(candidate)
    read_together(candidates)
    candidates = without_averages(without_unreadable(candidates, notes), notes)
    candidates = without_marked(candidates, pattern, notes)
    unit = common_unit(candidates, search=read_inside)
    if unit == "epoch" and read_inside and repeats(candidates, unit):
        add_steps(candidates)
    candidates = without_copies(candidates, unit, notes)
    # A copy that was left out may have been all that stood in the way.
    unit = common_unit(candidates) or prevailing_unit(candidates, notes)
    candidates = without_twins(candidates, unit, notes, look=read_inside)
    snapshots = [_snapshot(candidate, unit) for candidate in candidates]
    if not keep_order:
        snapshots = _in_order(snapshots, unit, notes, explicit=len(named) > 1)
    notes += _missing_and_equal(snapshots, unit)
    snapshots, more = beside(snapshots)
    notes += more
    unmeasured = None
    if metrics_file is not None:
        measured = from_file(os.fspath(metrics_file), snapshots, unit)
        snapshots, unmeasured = measured.snapshots, measured.useless
        notes += measured.notes
    return Series(tuple(snapshots), tuple(notes), unit, shared, unmeasured)


def in_given_order(
    paths: Iterable[str | os.PathLike[str]], *, keep_order: bool = False
) -> Series | None:
    """The series of paths that are all files or checkpoint folders, by their names alone; None if
    one has to be searched, is missing, or if they are ambiguous.

    Where not all names have a step in a common unit, the order given stands. Opens nothing.
    InputError for a folder of ranks that have several steps.
    """
    notes: list[str] = []
    names = without_pointers([os.fspath(path) for path in paths], notes)
    told = notes if len(names) == 1 else []
    if len(names) == 1:
        check_one_step(names[0])
    if not (
        all(is_one_checkpoint(p, told) if is_folder(p) else _is_there(p) for p in names)
        or are_composites(names)
    ):
        return None
    candidates = [Candidate(path, _named(path, names)) for path in names]
    for candidate in candidates:
        candidate.counts = dict(candidate.name.counts)
    read_together(candidates)
    unit = common_unit(candidates)
    complete = all(unit in candidate.counts for candidate in candidates)
    snapshots = [_snapshot(candidate, unit) for candidate in candidates]
    if unit is not None and complete and not keep_order:
        snapshots = _in_order(snapshots, unit, notes, explicit=len(names) > 1)
    return Series(tuple(snapshots), tuple(notes), unit)


def _candidates(named: Sequence[str], pattern: str | None, notes: list[str]) -> list[Candidate]:
    """The checkpoints that are named, and those in the folders among them that are searched."""
    candidates: list[Candidate] = []
    composites = pattern is None and are_composites(named)
    for path in named:
        if is_folder(path) and not (
            composites or (pattern is None and is_one_checkpoint(path, notes))
        ):
            candidates += search(path, pattern, notes)
        else:
            if not _is_there(path):
                find_file(path)
            candidates.append(Candidate(path, _named(path, named)))
    return candidates


def _is_there(path: str) -> bool:
    """Whether a path is a file or a folder, or stands for a checkpoint as a prefix does."""
    return exists(path) or format_at(path) is not None


def _named(path: str, given: Sequence[str]) -> NameFacts:
    """What the name of a given path says, or that of its folder if it holds no other one."""
    full = absolute(path)
    facts = read_name(os.path.basename(full))
    parent = os.path.dirname(full)
    alone = sum(os.path.dirname(absolute(other)) == parent for other in given) == 1
    if not facts.counts and is_generic(os.path.basename(full)) and alone:
        above = read_name(os.path.basename(parent))
        return replace(facts, counts=above.counts, is_copy=facts.is_copy and not above.counts)
    return facts


def _snapshot(candidate: Candidate, unit: Unit | None) -> Snapshot:
    step = None if unit is None else candidate.counts.get(unit)
    metrics = dict(candidate.name.metrics)
    if candidate.inside is not None:
        metrics = {**candidate.inside.metrics, **metrics}
    source: StepFrom = "name" if unit in candidate.name.counts else "file"
    opened = candidate.inside is not None or candidate.unreadable
    return Snapshot(
        candidate.path,
        step,
        metrics,
        "none" if step is None else source,
        candidate.counts,
        opened,
        tuple(candidate.rivals),
        candidate.is_end and step is None,
    )


def _in_order(
    snapshots: list[Snapshot], unit: Unit | None, notes: list[str], *, explicit: bool
) -> list[Snapshot]:
    """By step; those without one stay before the others, in the order in which they came, and what
    a run left at its end comes last."""

    def key(snapshot: Snapshot) -> tuple[float, float]:
        if snapshot.is_end:
            return float("inf"), 0
        # Within an epoch by step, its end (checkpoint3.pt beside checkpoint_3_500.pt) last.
        step = -1 if snapshot.step is None else snapshot.step
        finer = snapshot.counts.get("step", snapshot.counts.get("batch", float("inf")))
        return step, finer if unit == "epoch" and step >= 0 else 0

    ordered = sorted(snapshots, key=key)
    if explicit and ordered != snapshots:
        notes.append(
            f"put in {unit} order: {labels([snapshot.path for snapshot in ordered], 6)}"
            " (--keep-order leaves the order given)"
        )
    return ordered


def _missing_and_equal(snapshots: Sequence[Snapshot], unit: Unit | None) -> list[str]:
    notes = []
    ends = [snapshot.path for snapshot in snapshots if snapshot.is_end]
    if ends:
        notes.append(f"taken as the newest, going by the name: {labels(ends)}")
    lacking = [snapshot.path for snapshot in snapshots if snapshot.step is None]
    if len(lacking) == len(snapshots) and len(snapshots) > 1:
        notes.append("no steps known, neither from names nor from the files: the order stands")
    elif len(lacking) > len(ends) and len(snapshots) > 1:
        others = [path for path in lacking if path not in ends]
        notes.append(f"no {unit} known for {labels(others)}; the others have one")
    by_step: dict[int, list[str]] = {}
    for snapshot in snapshots:
        if snapshot.step is not None:
            by_step.setdefault(snapshot.step, []).append(snapshot.path)
    equal = [(step, paths) for step, paths in by_step.items() if len(paths) > 1]
    for step, paths in equal[:3]:
        notes.append(f"{len(paths)} are of {unit} {step}: {labels(paths)}")
    if len(equal) > 3:
        notes.append(f"... and so at {len(equal) - 3} more {unit}s")
    return notes
