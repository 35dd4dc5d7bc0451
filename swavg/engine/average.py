"""The main path: open, match, decide, lay out; then read, sum, write, and publish."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from swavg import weights as schedules
from swavg.engine.ahead import cut_of
from swavg.engine.beforehand import Beforehand
from swavg.engine.origins import as_before, origins_of, told_of, with_lineage
from swavg.engine.outputs import check, publishing, write_deferred, write_fixed
from swavg.engine.recipe import as_text, recipe, short_names
from swavg.engine.remarks import (
    averages_left,
    facts_kept,
    notes_of_all,
    same_twice,
    warnings_of,
    weights_lost,
)
from swavg.engine.report import Progress, Report, Tally
from swavg.engine.resources import Resources
from swavg.engine.results import Sinks
from swavg.engine.whole_report import reports
from swavg.engine.workers import cluster_of, start, tools_of
from swavg.errors import OptimizerError, RequestError
from swavg.formats import open_checkpoint
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.tensors import Shared
from swavg.gc_pause import paused_gc
from swavg.planning.composite import Parts, Singles, find_parts
from swavg.planning.confirm import check_copied, check_plain
from swavg.planning.decide import Decisions, decide
from swavg.planning.globs import check_globs, selection
from swavg.planning.lay_out import lay_out
from swavg.planning.lora import Concatenated, concatenate
from swavg.planning.match import SideBySide, distinct_tables
from swavg.planning.plan import CUT, DEVICE_CUT, GATHERED_CUT, Plan
from swavg.planning.policy import Policy
from swavg.planning.rename import renamed, rules
from swavg.planning.row import Path, Row
from swavg.planning.siblings import join_siblings
from swavg.planning.side_files import differing_files
from swavg.planning.ties import broken_ties
from swavg.storage.paths import check_all, look_ahead, unpinned

OnProgress = Callable[[Progress], None]

_TASKS = 8
"""For each processor of a cluster, about."""


def average(
    inputs: Sequence[Path],
    weights: Sequence[float] | None = None,
    *,
    output: Path | None,
    policy: Policy | None = None,
    sum_to: schedules.Sum = "one",
    resources: Resources | None = None,
    force: bool = False,
    distances: bool = True,
    on_progress: OnProgress | None = None,
) -> Report:
    """Average checkpoints into one, in constant memory.

    ``inputs`` are files or folders, of one kind or mixed (folders of parts only with each other);
    ``weights`` one number each (None: the mean), which must sum to 1 unless ``sum_to`` is
    ``normalize`` or ``raw``. ``output`` is a path, None for standard output (safetensors, of a
    single checkpoint), or empty for the default name. Nothing is printed; ``on_progress`` is called
    after every task. ``distances``: how far each input lies from the average is estimated. Raises
    RequestError, MismatchError, InputError, OutputError or
    NumericsError; the destination is then as it was.
    """
    n = len(paths_of(inputs))
    numbers = schedules.mean(n) if weights is None else schedules.checked(weights, n, sum_to)
    row = Row(numbers, tuple(range(n)))
    resources = Resources() if resources is None else resources
    plan = prepare(inputs, [row], [output], policy, force=force, distances=distances)
    return execute(plan, resources, on_progress)[0]


@paused_gc()
def prepare(
    inputs: Sequence[Path],
    rows: Sequence[Row],
    outputs: Sequence[Path | None],
    policy: Policy | None = None,
    *,
    force: bool = False,
    distances: bool = True,
    folder: Path | None = None,
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
    shared: Shared | None = None,
    on_hash: Callable[[int, int | None], object] | None = None,
) -> Plan:
    """Open, match and plan; write nothing.

    Row ``i`` goes to ``outputs[i]``, as for :func:`average`. All are made of one read. ``folder``
    is the one that all of them lie in, made if there is none; ``notes`` and ``warnings`` are
    reported with the plan's own; ``shared`` is what was read of the inputs before. ``on_hash`` is
    called with the bytes that were hashed for ``digest="full"``, and those in all. Raises as
    :func:`average`.
    """
    policy = Policy() if policy is None else policy
    paths = paths_of(inputs)
    if not rows or len(rows) != len(outputs):
        raise RequestError(f"There are {len(rows)} rows and {len(outputs)} outputs.")
    if max(row.members[-1] for row in rows) >= len(paths):
        raise RequestError(f"A row has members beyond the {len(paths)} inputs.")
    parts = find_parts(paths, policy, shared)
    grouped = Singles(open_all(paths, policy.key, shared)) if parts is None else parts
    rows, places = grouped.times(rows, outputs)
    _check_key(policy.key, grouped.checkpoints)
    opened = renamed(grouped.checkpoints, rules(policy.strip_prefix, policy.rename))
    names = short_names([checkpoint.path for checkpoint in opened])
    targets = [
        grouped.target(place, row, policy, force=force)
        for row, place in zip(rows, places, strict=True)
    ]
    siblings = join_siblings(opened, names, rows, targets, policy, grouped.count)
    _check_globs(siblings.checkpoints, policy, parts)
    made = concatenate(siblings.checkpoints, names, rows, policy)
    decided, tied, doubts = _decided(made, policy, grouped.part_of)
    grouped.check_averaged(rows, decided)
    whole = short_names(grouped.roots)
    of_inputs = grouped.of_inputs(whole)
    full = policy.digest == "full"
    origins = grouped.of_inputs(origins_of(grouped.wholes, whole, full=full, on_read=on_hash))
    recipes = [
        with_lineage(recipe(made.shown, own, policy, told_of(row, origins)), row, origins)
        for row, own in zip(rows, made.rows, strict=True)
    ]
    texts = [
        _written(own, told, made.checkpoints) for own, told in zip(made.rows, recipes, strict=True)
    ]
    early = Beforehand(made.checkpoints, made.shown, policy)
    entries, planned = lay_out(
        made.checkpoints, made.rows, decided, targets, texts, policy, made.files, early.compute
    )
    notes = (
        *notes_of_all(names, siblings.checkpoints),
        *same_twice(whole, grouped.wholes),
        *grouped.notes(rows),
        *tied,
        *facts_kept(rows, planned, opened, names),
        *(note for row in rows for note in averages_left(grouped.left_out(row))),
        *dict.fromkeys(made.notes),
        *notes,
    )
    doubts = [
        *warnings,
        *unpinned(source for each in made.checkpoints for source in each.sources),
        *broken_ties(opened, names),
        *made.warnings,
        *doubts,
        *grouped.warnings(rows),
        *(doubt for row in rows for doubt in warnings_of(row, opened, of_inputs)),
        *(doubt for row in rows for doubt in weights_lost(grouped.left_out(row))),
        *differing_files(grouped.side_files, whole),
    ]
    plan = Plan(
        checkpoints=tuple(made.checkpoints),
        shown=tuple(made.shown),
        rows=tuple(made.rows),
        policy=policy,
        entries=entries,
        outputs=planned,
        recipes=tuple(recipes),
        notes=notes,
        warnings=tuple(dict.fromkeys(doubts)),
        # The parts of an input point nowhere.
        distances=distances and policy.lora != "exact" and not any(row.copies for row in rows),
        folder=None if folder is None else os.fsdecode(folder),
        cut=GATHERED_CUT if entries.gathered else CUT,
        differing=early.differing,
        nonfinite=early.nonfinite,
        parts=parts,
    )
    if plan.remote:
        plan = replace(plan, cut=cut_of(entries))
    return siblings.told(plan)


def _written(row: Row, told: Mapping[str, object], checkpoints: Sequence[Checkpoint]) -> str:
    """The recipe as it stands in the output."""
    if row.recorded is not None:
        return row.recorded
    if row.copies:
        return checkpoints[row.members[0]].extras.recipe or ""
    return as_text(as_before(told) if row.older else told)


def _check_key(key: str | None, checkpoints: Sequence[Checkpoint]) -> None:
    """RequestError for the place of a state dict where no file may have such places."""
    sources = {source.name for checkpoint in checkpoints for source in checkpoint.sources}
    if key and all(name.endswith(".safetensors") for name in sources):
        raise RequestError(
            f"'{key}' is looked for in PyTorch files, and all inputs are safetensors files, which"
            " hold one state dict each.",
            argument="key",
            hint="Leave key= out; include= and exclude= choose tensors by their names.",
        )


def _check_globs(checkpoints: Sequence[Checkpoint], policy: Policy, parts: Parts | None) -> None:
    """RequestError for globs that match nothing."""
    tables, _ = distinct_tables(checkpoints)
    names = [table.columns.names for table in tables]
    if parts is None:
        check_globs(names, policy.include, policy.exclude)
    else:
        names = [each.tensors.columns.names for each in checkpoints]
        own = [parts.part_of(number) for number in range(len(checkpoints))]
        check_globs(names, policy.include, policy.exclude, own)


def _decided(
    made: Concatenated, policy: Policy, part_of: Callable[[int], str | None]
) -> tuple[list[Decisions], list[str], list[str]]:
    """What becomes of each tensor, by row; notes on ties that were found, and warnings."""
    decided: list[Decisions] = []
    tied: list[str] = []
    warnings: list[str] = []
    checked: set[tuple[int, ...]] = set()
    exact = policy.lora == "exact"
    for row, factor_sums in zip(made.rows, made.factor_sums, strict=True):
        members = [made.checkpoints[member] for member in row.members]
        shown = [made.shown[member] for member in row.members]
        match = SideBySide(members)
        tied += match.notes()
        if not policy.strict:
            warnings += match.warnings(shown)
        part = part_of(row.members[-1])
        if row.copies:
            check_copied(members[0], policy)
        elif row.members not in checked:
            averaged = selection(match, policy, part or "")
            warnings += check_plain(members, shown, averaged, exact=exact)
            checked.add(row.members)
        decided.append(
            decide(
                made.checkpoints,
                match,
                row,
                policy,
                made.shown,
                factor_sums,
                part,
            )
        )
    return decided, list(dict.fromkeys(tied)), warnings


def execute(
    plan: Plan,
    resources: Resources | None = None,
    on_progress: OnProgress | None = None,
    on_publish: Callable[[], object] = lambda: None,
) -> list[Report]:
    """Make and publish all outputs of a plan, or none: a report for each.

    ``on_publish`` is called before the first output gets its name: from then on there is no way
    back. Raises a SwavgError; all names are then as they were.
    """
    resources = Resources() if resources is None else resources
    if resources.device != "cpu" and not plan.remote:
        plan = replace(plan, cut=DEVICE_CUT)
    check(plan)
    begun = time.monotonic()
    with cluster_of(plan, resources) as cluster:
        if cluster is not None:
            plan = plan.for_machines(_TASKS * cluster.processors)
        tally, executor, chosen = start(plan, resources, cluster)
        tell = partial(_tell, tally, begun, on_progress)
        tell()
        with publishing(plan, tally, on_publish) as sinks:
            write_fixed(plan, sinks)
            make = tools_of(plan, chosen, resources)
            for result in executor(plan, plan.tasks(), sinks, make):
                tally.add(result)
                tell()
            complete(plan, tally, sinks, resources)
    seconds = time.monotonic() - begun
    return reports(plan, chosen, resources, tally, seconds)


def complete(plan: Plan, tally: Tally, sinks: Sinks, resources: Resources) -> None:
    """Once all tasks are done: write what follows from them. InputError if an input is not what it
    was."""
    tally.complete()
    tally.notes += tally.reads.compare(plan, everything=resources.check_crc)
    write_deferred(plan, tally, sinks)
    check_all(plan.sources)


def dry_run(plan: Plan, resources: Resources) -> list[Report]:
    """The reports of what would be done."""
    with cluster_of(plan, resources) as cluster:
        _, _, chosen = start(plan, resources, cluster)
    return [replace(each, dry_run=True) for each in reports(plan, chosen, resources)]


def _tell(tally: Tally, begun: float, on_progress: OnProgress | None) -> None:
    if on_progress is not None:
        on_progress(Progress(tally.read, tally.total, time.monotonic() - begun))


def paths_of(inputs: Sequence[Path]) -> list[str]:
    """The inputs as strings; RequestError for none, or for one that stands alone."""
    if isinstance(inputs, (str, bytes, os.PathLike)):
        raise RequestError("The inputs are one path.", hint="Give a list of paths.")
    paths = [os.fsdecode(path) for path in inputs]
    if not paths:
        raise RequestError("No checkpoints given.")
    return paths


def open_all(
    paths: Sequence[str], key: str | None = None, shared: Shared | None = None
) -> list[Checkpoint]:
    """Open checkpoints to be averaged; what they have in common is kept once."""
    shared = Shared() if shared is None else shared
    look_ahead(paths)
    opened = [open_checkpoint(path, key=key, shared=shared) for path in paths]
    for checkpoint in opened:
        if checkpoint.extras.is_optimizer:
            raise OptimizerError(
                checkpoint.path, "holds the state of an optimizer, which is not averaged"
            )
    return opened
