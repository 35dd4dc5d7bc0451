"""An output that several runs make: parts of its tasks, on any machines and days, or one run that
goes on where another was killed. Each writes its bytes into one temporary, and a journal of them.
"""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from swavg.engine.agreement import agree
from swavg.engine.average import OnProgress, complete
from swavg.engine.outputs import (
    check,
    goes_to_store,
    goes_to_stream,
    publishing,
    shared,
    shared_files,
    shared_paths,
    write_fixed,
)
from swavg.engine.records import recorded, still_written, write_down
from swavg.engine.report import Progress, Report
from swavg.engine.resources import Resources
from swavg.engine.whole_report import reports
from swavg.engine.workers import cluster_of, start, tools_of
from swavg.errors import OutputError, RequestError
from swavg.formats.strict_json import short
from swavg.planning.plan import Plan
from swavg.storage.journals import MOST_PARTS, Journal, Journals
from swavg.storage.paths import check_all
from swavg.storage.protect import check_none_is_input

if TYPE_CHECKING:
    from swavg.engine.ray.connection import Cluster

_TASKS = 64
"""Of a part, about."""


@dataclass(frozen=True, slots=True)
class Part:
    """The ``number``-th of ``count`` parts, from 1 on."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """``3/8``. RequestError."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        part = cls(int(found[1]), int(found[2])) if found else cls(0, 0)
        if not 1 <= part.number <= part.count <= MOST_PARTS:
            raise RequestError(
                f"is I/N with 1 <= I <= N <= {MOST_PARTS:,}, such as 3/8, not {short(text)}.",
                argument="part",
            )
        return part

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, numbers: Sequence[int]) -> Sequence[int]:
        """Its stretch of the tasks."""
        size = len(numbers)
        return numbers[size * (self.number - 1) // self.count : size * self.number // self.count]


def share(plan: Plan, part: Part) -> tuple[int, int]:
    """How many of a plan's tasks a part makes, and how many there are."""
    tasks = plan.for_machines(part.count * _TASKS).tasks()
    return len(part.of(tasks)), len(tasks)


def run_part(
    plan: Plan,
    resources: Resources,
    on_progress: OnProgress | None = None,
    on_end: Callable[[], object] = lambda: None,
    *,
    part: Part,
) -> list[Report]:
    """Make one part of a plan's outputs, which :func:`finish` gives their names.

    What the part has done already is compared with its journal, and not done again. ``on_end`` is
    called before it is said to be done. There is no report before :func:`finish`. Raises a
    SwavgError: InputError if other parts are of another plan or of other inputs.
    """
    if resources.engine != "local" and part.count > 1:
        raise RequestError("engine=ray shares the work out itself, and makes no part=.")
    plan, journals = plan.for_machines(part.count * _TASKS), _journals(plan)
    with cluster_of(plan, resources) as cluster:
        _run_part(plan, resources, cluster, journals, part, on_progress, on_end)
    return []


def _run_part(
    plan: Plan,
    resources: Resources,
    cluster: Cluster | None,
    journals: Journals,
    part: Part,
    on_progress: OnProgress | None,
    on_end: Callable[[], object],
) -> None:
    begun = [path for path in shared_paths(plan) if os.path.lexists(path)]
    if begun and journals.facts() is None:
        raise OutputError(
            journals.target,
            f"{begun[0]} lies there without the journals of what is in it",
            hint=f"Begin anew: {shlex.join(['rm', '-r', begun[0]])}",
        )
    check(plan, begun=bool(begun))
    digest = agree(journals, plan, part.count)
    written = [journals.path(part.number), *(path for path, _ in shared_files(plan))]
    check_none_is_input(written, plan.sources)
    tally, executor, chosen = start(plan, resources, cluster)
    numbers = part.of(plan.tasks())
    total = tally.total * len(numbers) // max(1, len(plan.tasks()))
    started = time.monotonic()

    def tell() -> None:
        if on_progress is not None:
            on_progress(Progress(tally.read, total, time.monotonic() - started))

    tell()
    with journals.open(part.number, digest) as journal:
        # Once another part has written, the files are not made anew: its bytes would be missing.
        if journals.recorded(part.count):
            _check_there(plan, journals)
        if _is_done(journal, plan, numbers):
            return
        with shared(plan) as sinks:
            # Reading again what is written takes its time, too.
            for result in still_written(recorded(journal, plan, numbers), sinks):
                if result.number not in tally.done:
                    tally.add(result)
                    tell()
            left = [number for number in numbers if number not in tally.done]
            make = tools_of(plan, chosen, resources, journaled=True)
            made = executor(plan, left, sinks, make) if left else ()
            for result in write_down(made, journal, plan.sources):
                tally.add(result)
                tell()
            check_all(plan.sources)
        on_end()
        journal.end()


def finish(
    plan: Plan,
    resources: Resources,
    on_progress: OnProgress | None = None,
    on_publish: Callable[[], object] = lambda: None,
) -> list[Report]:
    """Give the outputs their names, once all parts are there: a report for each.

    Nothing is read, so that there is no progress. Raises RequestError for parts that are missing,
    and as :func:`swavg.engine.average.execute`.
    """
    journals = _journals(plan)
    facts = journals.facts()
    if facts is None:
        raise RequestError(
            f"No part of {journals.target} is there.",
            hint="Make all parts of this output first, such as part=1/8 to part=8/8.",
        )
    count = cast(int, facts["parts"])
    plan = plan.for_machines(count * _TASKS)
    check(plan, begun=True)
    digest = agree(journals, plan, count)
    begun = time.monotonic()
    parts = {number: journals.read(number, digest) for number in range(1, count + 1)}
    numbers = {number: Part(number, count).of(plan.tasks()) for number in parts}
    missing = [
        number for number, part in parts.items() if not _is_done(part, plan, numbers[number])
    ]
    if missing:
        several = len(missing) > 1
        raise RequestError(
            f"Part{'s' * several} {_ranges(missing)} of {count} {'are' if several else 'is'} not"
            " done.",
            hint=f"Run part={missing[0]}/{count} (again); what it has done stays.",
        )
    _check_there(plan, journals)
    tally, _, chosen = start(plan, resources)
    with publishing(plan, tally, on_publish, kept=True) as sinks:
        # By one run alone: it may lie in pages in which several parts wrote.
        write_fixed(plan, sinks)
        for number, part in parts.items():
            for result in recorded(part, plan, numbers[number]):
                if result.number not in tally.done:
                    tally.add(result)
        complete(plan, tally, sinks, resources)
    journals.remove()
    return reports(plan, chosen, resources, tally, time.monotonic() - begun)


def proceed(
    plan: Plan,
    resources: Resources,
    on_progress: OnProgress | None = None,
    on_publish: Callable[[], object] = lambda: None,
) -> list[Report]:
    """As :func:`swavg.engine.average.execute`, but a run that is killed leaves what it has done,
    from where the next one goes on."""
    run_part(plan, resources, on_progress, part=Part(1, 1))
    return finish(plan, resources, None, on_publish)


def _is_done(journal: Journal, plan: Plan, numbers: Sequence[int]) -> bool:
    """Whether a journal is complete, and tells of all these tasks."""
    told = (result.number for result in recorded(journal, plan, numbers))
    return journal.complete and {*told} == {*numbers}


def _check_there(plan: Plan, journals: Journals) -> None:
    """OutputError unless the files are there that the journals tell of."""
    for path, size in shared_files(plan):
        try:
            problem = "" if os.stat(path).st_size == size else "has another size"
        except OSError as error:
            problem = str(error.strerror)
        if problem:
            raise OutputError(
                journals.target,
                f"{path}, which parts were written to: {problem}",
                hint=f"Begin anew: {journals.anew}",
            )


def _journals(plan: Plan) -> Journals:
    path = plan.outputs[0].target.path
    if path is None or goes_to_stream(plan):
        raise RequestError("What is made in parts is a file or a folder, not a stream.")
    if goes_to_store(plan):
        raise RequestError(
            f"{path}: what is made in parts lies in a folder of this machine, or one that several"
            " share.",
            hint="Give a path there, and upload the result.",
        )
    return Journals(plan.folder or path)


def _ranges(numbers: Sequence[int]) -> str:
    """``2,5-7``, as Slurm's ``--array`` takes it."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)
