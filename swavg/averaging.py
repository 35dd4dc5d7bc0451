"""The main path: open, weigh, plan, lay out, stream, publish."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from swavg import publish, weights
from swavg.crew import can_fork
from swavg.errors import InputError, OutputError, RequestError
from swavg.formats import open_checkpoint
from swavg.formats.base import Checkpoint, Layout, Task, open_input
from swavg.formats.output import Output, choose_target, default_path, lay_out
from swavg.guard import refuse_inputs, refuse_inputs_as_stdout, refuse_other_files
from swavg.pieces import Budget, Resources
from swavg.plan import Plan, Policy, make_plan
from swavg.pouring import pour
from swavg.recipe import as_text, recipe, short_names
from swavg.report import STDOUT, Progress, Report, summary_of
from swavg.stream import Stream, Tally
from swavg.ties import confirmed_ties

if TYPE_CHECKING:
    from swavg.geometry import Geometry

Path = str | os.PathLike[str]
OpenSink = Callable[[Layout], AbstractContextManager[publish.Sink]]


@dataclass(frozen=True)
class Wanted:
    """One output: ``weights`` for the inputs ``members`` (None: all), and where it goes.

    ``output`` is a path, None for standard output, or empty for the default name. ``method`` and
    ``details`` (decay, step, ...) are recorded with the output.
    """

    output: Path | None
    weights: tuple[float, ...]
    members: tuple[int, ...] | None = None
    method: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Job:
    """Everything decided and nothing written: made by :func:`prepare`, done by :meth:`run`.

    ``members`` are the indices of the ``checkpoints`` that this output is made of.
    """

    checkpoints: tuple[Checkpoint, ...]
    members: tuple[int, ...]
    plan: Plan
    output: Output
    budget: Budget
    resources: Resources
    recipe: Mapping[str, Any]
    notes: tuple[str, ...]
    force: bool
    geometry: bool

    def check(self) -> None:
        """Raise OutputError if the output could not be published: it exists and ``force`` is not
        set, is an input, or the disk has no room."""
        path = self.output.target.path
        if path is None:
            refuse_inputs_as_stdout(self.checkpoints)
            return
        refuse_inputs(path, self.checkpoints)
        folder = self.output.target.kind == "folder"
        publish.check_destination(path, self.output.size, force=self.force, folder=folder)
        if folder and os.path.isdir(path):
            refuse_other_files(path, self.output)

    def run(self, on_progress: Callable[[Progress], None] | None = None) -> Report:
        """Stream the sum and publish it. Raises a SwavgError; the destination is then as it was."""
        return run_together([self], on_progress)[0]

    def report(
        self,
        seconds: float | None = None,
        differing: tuple[str, ...] = (),
        nonfinite: tuple[str, ...] = (),
        geometry: Geometry | None = None,
    ) -> Report:
        """The report of this job, before it runs or with what a run found out."""
        plan, target = self.plan, self.output.target
        members = [self.checkpoints[index] for index in self.members]
        nothing = (None,) * len(members)
        distances = (geometry and geometry.distances()) or nothing
        cosines = (geometry and geometry.cosines()) or nothing
        excluded = sum(entry.how == "excluded" for entry in plan.treated)
        tasks = plan.tasks
        written = [task for layout in self.output.layouts for task in layout.tasks]
        counts = {
            "averaged": sum(task.kind == "average" and len(task.inputs) > 0 for task in tasks),
            "pooled": sum(task.kind == "pooled" for task in tasks),
            "integer": sum(task.kind == "integer" for task in tasks),
            "copied": sum(task.kind == "copy" for task in tasks),
            "dropped": sum(
                entry.how == "dropped" or entry.why == "dropped" for entry in plan.treated
            ),
            "excluded": excluded,
        }
        return Report(
            output=STDOUT if target.path is None else target.path,
            format=target.kind,
            inputs=tuple(
                summary_of(checkpoint, name, weight, distance, cosine)
                for checkpoint, name, weight, distance, cosine in zip(
                    members, plan.inputs, plan.weights, distances, cosines, strict=True
                )
            ),
            tensors=counts,
            elements=sum(task.numel for task in tasks),
            read=sum(source.spec.nbytes for task in written for source in task.sources),
            written=self.output.size,
            files=len(self.output.layouts),
            memory=self.budget.memory,
            threads=self.budget.workers,
            device=self.resources.device,
            treated=tuple(
                {"name": entry.name, "how": entry.how, "why": entry.why} for entry in plan.treated
            ),
            ties=plan.ties,
            differing_integers=differing,
            nonfinite=nonfinite,
            notes=(*self.notes, *plan.notes, *self.output.notes),
            warnings=() if geometry is None else geometry.warnings(plan.inputs),
            running_statistics=_averaged_statistics(tasks),
            recipe=self.recipe,
            seconds=seconds,
        )


def _averaged_statistics(tasks: Sequence[Task]) -> tuple[str, ...]:
    """Batch-norm buffers that are averaged like weights: those of layers that are not pooled."""
    pooled = {task.name.removesuffix("var") for task in tasks if task.kind == "pooled"}
    return tuple(
        task.name
        for task in tasks
        if task.kind == "average"
        and task.name.endswith((".running_var", ".running_mean"))
        and task.name.removesuffix("mean") not in pooled
    )


def run_together(
    jobs: Sequence[Job], on_progress: Callable[[Progress], None] | None = None
) -> list[Report]:
    """Run jobs over the same checkpoints (from one :func:`prepare_many`) with one read of each
    input, and publish all outputs or none before all are complete. Raises a SwavgError."""
    for job in jobs:
        job.check()
    _check_room(jobs)
    begun = time.monotonic()
    groups = [list(jobs)] if _alike(jobs) else [[job] for job in jobs]
    total = sum(read for group in groups for read in _reads(group))
    done = 0
    found = []
    # Nothing gets its name before the last output is complete.
    with ExitStack() as stack:
        opens = {id(job): stack.enter_context(_publishing(job)) for job in jobs}
        for group in groups:
            base = done

            def tick(read: int, base: int = base) -> None:
                if on_progress is not None:
                    on_progress(Progress(base + read, total, time.monotonic() - begun))

            tally, geometry = _stream(group, [opens[id(job)] for job in group], tick)
            done += tally.read
            found += [(job, tally, geometry) for job in group]
    seconds = time.monotonic() - begun
    return [
        job.report(seconds, tuple(tally.differing_integers), tuple(tally.nonfinite), geometry)
        for job, tally, geometry in found
    ]


def _check_room(jobs: Sequence[Job]) -> None:
    """Raise OutputError if the outputs together do not fit where each alone would."""
    sizes: dict[str, int] = {}
    for job in jobs:
        path = job.output.target.path
        if path is not None and not publish.is_stream(path):
            parent = os.path.dirname(os.path.realpath(path))
            sizes[parent] = sizes.get(parent, 0) + job.output.size
    for parent, size in sizes.items():
        publish.check_room(parent, size, shown=parent)


def _stream(
    jobs: Sequence[Job], opens: Sequence[OpenSink], tick: Callable[[int], None]
) -> tuple[Tally, Geometry | None]:
    """Pour the outputs of jobs that are alike into their sinks, and check the inputs."""
    first = jobs[0]
    rounds = list(zip(*(job.output.layouts for job in jobs), strict=True))
    with Stream(
        first.checkpoints,
        _all_names(jobs),
        first.plan.policy,
        first.budget,
        rounds,
        first.resources.device,
        len(first.members) if first.geometry and len(jobs) == 1 else None,
    ) as stream:
        for turn, layouts in enumerate(rounds):
            with ExitStack() as files:
                sinks = [
                    files.enter_context(open_sink(layout))
                    for open_sink, layout in zip(opens, layouts, strict=True)
                ]
                pour(sinks, layouts, stream.chunks(turn), lambda: tick(stream.tally.read))
        for checkpoint in first.checkpoints:
            for file in checkpoint.files:
                file.check()
    return stream.tally, stream.geometry


def _alike(jobs: Sequence[Job]) -> bool:
    """True if the outputs differ in weights only, file by file and byte for byte in size."""
    columns = [
        [
            (layout.name, [(task.name, task.shape, task.dtype.name) for task in layout.tasks])
            for layout in job.output.layouts
        ]
        for job in jobs
    ]
    return all(column == columns[0] for column in columns[1:])


def _reads(jobs: Sequence[Job]) -> Iterator[int]:
    from swavg.pieces import union

    for layouts in zip(*(job.output.layouts for job in jobs), strict=True):
        for rows in zip(*(layout.tasks for layout in layouts), strict=True):
            yield sum(source.spec.nbytes for source in union(rows)[1])


def _all_names(jobs: Sequence[Job]) -> tuple[str, ...]:
    names = [checkpoint.path for checkpoint in jobs[0].checkpoints]
    for job in jobs:
        for index, name in zip(job.members, job.plan.inputs, strict=True):
            names[index] = name
    return tuple(names)


@contextmanager
def _publishing(job: Job) -> Iterator[OpenSink]:
    """Gives what opens the sink of a layout; publishes when the block ends well."""
    target, output = job.output.target, job.output
    path = target.path
    if path is None:
        yield lambda layout: nullcontext(publish.Sink("standard output", sys.stdout.fileno()))
    elif target.kind == "folder":
        with publish.new_folder(path, force=job.force) as folder:

            @contextmanager
            def open_shard(layout: Layout) -> Iterator[publish.Sink]:
                with publish.write_into(folder, layout.name, shown=path) as sink:
                    yield sink
                _verify(layout, sink.path, path)

            yield open_shard
            for name, data in output.files.items():
                with publish.write_into(folder, name, shown=path) as sink:
                    sink.write(data)
            for name, source in output.side_files.items():
                _copy(source, name, folder, path)
            # The run may have taken an hour, in which someone put something there.
            if os.path.isdir(path):
                refuse_other_files(path, output)
    else:
        with publish.new_file(path, force=job.force) as sink:
            yield lambda layout: nullcontext(sink)
            if not publish.is_stream(path):
                _verify(output.layouts[0], sink.path, path)


def _verify(layout: Layout, path: str, shown: str) -> None:
    try:
        layout.verify(path)
    except OutputError as error:
        # Its temporary name means nothing to anyone.
        raise OutputError(shown, error.problem) from None


def _copy(source: str, name: str, folder: Any, shown: str) -> None:
    with open_input(source) as (fd, file), publish.write_into(folder, name, shown=shown) as sink:
        position = 0
        while position < file.size:
            try:
                data = os.pread(fd, 1 << 20, position)
            except OSError as error:
                raise InputError(source, f"read error: {error.strerror}") from None
            if not data:
                raise InputError(source, "was cut short while it was copied")
            sink.write(data)
            position += len(data)


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
    paths = [os.fspath(path) for path in inputs]
    if not paths:
        raise RequestError("No checkpoints given.")
    if weights_given is None:
        numbers = weights.mean(len(paths))
    else:
        numbers = weights.given(weights_given, len(paths), sum_to)
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
    paths = [os.fspath(path) for path in inputs]
    checkpoints = tuple(open_all(paths, policy.key))
    shown = short_names(paths)
    notes = [
        f"{name}: {note}"
        for name, checkpoint in zip(shown, checkpoints, strict=True)
        for note in checkpoint.notes
    ]
    notes += _same_twice(shown, checkpoints)
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
    path = None if where is None else os.fspath(where) or default_path(chosen[0])
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


def _same_twice(shown: Sequence[str], checkpoints: Sequence[Checkpoint]) -> list[str]:
    seen: dict[tuple[Any, ...], str] = {}
    notes = []
    for name, checkpoint in zip(shown, checkpoints, strict=True):
        identity = tuple((file.device, file.inode) for file in checkpoint.files)
        if identity in seen:
            notes.append(f"{name} is the same file as {seen[identity]}: it counts twice")
        seen.setdefault(identity, name)
    return notes
