"""The main path: open, weigh, plan, lay out; then stream and publish (:mod:`swavg.job`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from swavg import weights
from swavg.crew import can_fork
from swavg.errors import RequestError
from swavg.formats import open_checkpoint
from swavg.formats.base import Checkpoint
from swavg.formats.output import choose_target, default_path, lay_out
from swavg.job import Job, Path, Wanted
from swavg.pieces import Budget, Resources
from swavg.plan import make_plan
from swavg.policy import Policy
from swavg.recipe import as_text, recipe, short_names
from swavg.report import Progress, Report
from swavg.ties import confirmed_ties


def average(
    inputs: Sequence[Path],
    weights: Sequence[float] | None = None,
    *,
    output: Path | None,
    policy: Policy | None = None,
    sum_to: weights.Sum = "one",
    resources: Resources | None = None,
    force: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    geometry: bool = True,
) -> Report:
    """Average checkpoints into one, in constant memory.

    ``inputs`` are files or folders, all of one kind or mixed; ``weights`` one number each (None:
    the mean), which must sum to 1 unless ``sum_to`` is ``normalize`` or ``raw``. ``output`` is a
    path, or None for standard output (safetensors). Nothing is printed; ``on_progress`` is called
    after every chunk. ``geometry`` estimates how far each input lies from the average. Raises
    RequestError, MismatchError, InputError, OutputError or NumericsError; the destination is then
    as it was.
    """
    job = prepare(
        inputs,
        weights,
        output=output,
        policy=policy,
        sum_to=sum_to,
        resources=resources,
        force=force,
        geometry=geometry,
    )
    return job.run(on_progress)


def paths_of(inputs: Sequence[Path]) -> list[str]:
    """The inputs as strings; RequestError for none, or for one that stands alone."""
    if isinstance(inputs, (str, bytes, os.PathLike)):
        raise RequestError("The inputs are one path.", hint="Give a list of paths.")
    paths = [os.fsdecode(path) for path in inputs]
    if not paths:
        raise RequestError("No checkpoints given.")
    return paths


def prepare(
    inputs: Sequence[Path],
    weights_given: Sequence[float] | None = None,
    *,
    output: Path | None,
    policy: Policy | None = None,
    sum_to: weights.Sum = "one",
    resources: Resources | None = None,
    force: bool = False,
    geometry: bool = True,
) -> Job:
    """Open, match and plan; write nothing. The arguments are those of :func:`average`.

    An empty ``output`` stands for the default name, ``averaged`` with the first input's suffix.
    """
    paths = paths_of(inputs)
    if weights_given is None:
        numbers = weights.mean(len(paths))
    else:
        numbers = weights.checked(weights_given, len(paths), sum_to)
    wanted = Wanted(output, numbers)
    return prepare_many(
        paths, [wanted], policy=policy, resources=resources, force=force, geometry=geometry
    )[0]


def prepare_many(
    inputs: Sequence[Path],
    wanted: Sequence[Wanted],
    *,
    policy: Policy | None = None,
    resources: Resources | None = None,
    force: bool = False,
    geometry: bool = True,
) -> list[Job]:
    """Plan several outputs of the same inputs, for :func:`run_together`. Raises as
    :func:`average`."""
    policy = Policy() if policy is None else policy
    resources = Resources() if resources is None else resources
    if resources.device not in ("cpu", "torch"):
        from swavg.kernels.torch import check_device

        check_device(resources.device)
    paths = paths_of(inputs)
    checkpoints = tuple(open_all(paths, policy.key))
    shown = short_names(paths)
    notes = [*_notes(shown, checkpoints), *_same_twice(shown, checkpoints)]
    jobs = []
    for each in wanted:
        members = each.members if each.members is not None else tuple(range(len(paths)))
        jobs.append(_job(each, members, checkpoints, shown, policy, resources, tuple(notes), force))
    layouts = [layout for job in jobs for layout in job.output.layouts]
    budget = Budget.within(resources, layouts, policy, len(jobs), can_fork)
    return [replace(job, budget=budget, geometry=geometry) for job in jobs]


def _job(
    wanted: Wanted,
    members: tuple[int, ...],
    checkpoints: tuple[Checkpoint, ...],
    shown: Sequence[str],
    policy: Policy,
    resources: Resources,
    notes: tuple[str, ...],
    force: bool,
) -> Job:
    chosen = [checkpoints[index] for index in members]
    names = [shown[index] for index in members]
    plan = make_plan(chosen, wanted.weights, policy, inputs=names, ties=confirmed_ties(chosen))
    if members != tuple(range(len(members))):
        moved: dict[tuple[int, ...], tuple[int, ...]] = {}
        tasks = tuple(
            replace(
                task,
                inputs=moved.setdefault(task.inputs, tuple(members[i] for i in task.inputs)),
            )
            for task in plan.tasks
        )
        plan = replace(plan, tasks=tasks)
    values = recipe(names, wanted.weights, policy, wanted.method, wanted.details)
    where = wanted.output
    path = None if where is None else os.fsdecode(where)
    if path == "":
        path = default_path(chosen[0], policy.max_shard_size)
    output = lay_out(
        choose_target(path, chosen[0], policy.max_shard_size),
        plan.tasks,
        plan.ties,
        chosen[-1],
        members[-1],
        as_text(values),
        drop_ties=policy.drop_ties,
        weights_only=policy.weights_only,
        max_shard_size=policy.max_shard_size,
    )
    budget = Budget.within(resources, output.layouts, policy)
    return Job(checkpoints, members, plan, output, budget, resources, values, notes, force, False)


def open_all(paths: Sequence[str], key: str | None = None) -> list[Checkpoint]:
    """Open checkpoints; equal headers are parsed and kept once."""
    shared: dict[Any, Any] = {}
    return [open_checkpoint(path, key=key, shared=shared) for path in paths]


def _notes(shown: Sequence[str], checkpoints: Sequence[Checkpoint]) -> list[str]:
    """What the checkpoints have to say: once where all say the same."""
    told: dict[str, list[str]] = {}
    for name, checkpoint in zip(shown, checkpoints, strict=True):
        for note in checkpoint.notes:
            told.setdefault(note, []).append(name)
    notes = []
    for note, names in told.items():
        common = 1 < len(names) == len(checkpoints)
        notes += [note] if common else [f"{name}: {note}" for name in names]
    return notes


def _same_twice(shown: Sequence[str], checkpoints: Sequence[Checkpoint]) -> list[str]:
    seen: dict[tuple[Any, ...], str] = {}
    notes = []
    for name, checkpoint in zip(shown, checkpoints, strict=True):
        identity = tuple((file.device, file.inode) for file in checkpoint.files)
        if identity in seen:
            notes.append(f"{name} is the same file as {seen[identity]}: it counts twice")
        seen.setdefault(identity, name)
    return notes
