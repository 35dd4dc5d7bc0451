"""A job: everything decided and nothing written; and what runs it, alone or with others."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from swavg import publish
from swavg.formats.base import Checkpoint, Task
from swavg.formats.output import Output
from swavg.guard import refuse_inputs, refuse_inputs_as_stdout, refuse_other_files
from swavg.pieces import Budget, Resources, union
from swavg.plan import Plan
from swavg.pouring import pour
from swavg.publishing import OpenSink, publishing
from swavg.report import STDOUT, Progress, Report, summary_of
from swavg.stream import Stream, Tally

if TYPE_CHECKING:
    from swavg.geometry import Geometry

Path = str | os.PathLike[str]


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
    """Everything decided and nothing written: made by :func:`swavg.prepare`, done by :meth:`run`.

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

    def run(
        self,
        on_progress: Callable[[Progress], None] | None = None,
        on_publish: Callable[[], object] = lambda: None,
    ) -> Report:
        """Stream the sum and publish it, as :func:`run_together`. Raises a SwavgError; the
        destination is then as it was."""
        return run_together([self], on_progress, on_publish)[0]

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
        treated = {entry.name: entry.how for entry in plan.treated}
        excluded = sum(how == "excluded" for how in treated.values())
        # A copy into another dtype is computed as a sum of one.
        taken = {name for name, how in treated.items() if how in ("copied", "excluded")}
        tasks = plan.tasks
        written = [task for layout in self.output.layouts for task in layout.tasks]
        counts = {
            "averaged": sum(task.kind == "average" and task.name not in taken for task in tasks),
            "pooled": sum(task.kind == "pooled" for task in tasks),
            "integer": sum(task.kind == "integer" for task in tasks),
            "copied": sum(task.kind == "copy" or task.name in taken for task in tasks),
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
    jobs: Sequence[Job],
    on_progress: Callable[[Progress], None] | None = None,
    on_publish: Callable[[], object] = lambda: None,
) -> list[Report]:
    """Run jobs over the same checkpoints (from one :func:`swavg.averaging.prepare_many`) with one
    read of each input, and publish all outputs or none before all are complete. ``on_publish`` is
    called before an output gets its name: from then on there is no way back. Raises a SwavgError.
    """
    for job in jobs:
        job.check()
    _check_room(jobs)
    begun = time.monotonic()
    groups = [list(jobs)] if _alike(jobs) else [[job] for job in jobs]
    total = sum(read for group in groups for read in _reads(group))
    done = 0
    found = []
    if on_progress is not None:
        on_progress(Progress(0, total, 0.0))
    # Nothing gets its name before the last output is complete.
    with ExitStack() as stack:
        opens = {
            id(job): stack.enter_context(publishing(job.output, job.force, on_publish))
            for job in jobs
        }
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
    for layouts in zip(*(job.output.layouts for job in jobs), strict=True):
        for rows in zip(*(layout.tasks for layout in layouts), strict=True):
            yield sum(source.spec.nbytes for source in union(rows)[1])


def _all_names(jobs: Sequence[Job]) -> tuple[str, ...]:
    names = [checkpoint.path for checkpoint in jobs[0].checkpoints]
    for job in jobs:
        for index, name in zip(job.members, job.plan.inputs, strict=True):
            names[index] = name
    return tuple(names)
