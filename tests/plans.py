"""Doing a plan's tasks in ways of a test's own: other executors, other orders, other processes."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

from swavg.engine.executors import Executor, part
from swavg.engine.outputs import write_deferred, write_fixed
from swavg.engine.report import Tally
from swavg.engine.resources import Resources
from swavg.engine.results import Sinks, TaskResult
from swavg.engine.workers import start, tools_of
from swavg.planning.plan import Plan
from swavg.storage.sinks import FileSink

ALONE = Resources(threads=1)


def open_sinks(plan: Plan, folder: str | os.PathLike[str]) -> list[list[FileSink]]:
    """A file ``ROW-FILE`` in the folder for each that the plan writes."""
    return [
        [_open(os.path.join(folder, f"{row}-{file}")) for file in range(len(output.files))]
        for row, output in enumerate(plan.outputs)
    ]


def _open(path: str) -> FileSink:
    return FileSink(path, os.open(path, os.O_RDWR | os.O_CREAT, 0o644), path)


def close(sinks: Sequence[Sequence[FileSink]]) -> None:
    for row in sinks:
        for sink in row:
            sink.close()


def results_of(
    plan: Plan,
    executor: Executor,
    sinks: Sinks,
    numbers: Sequence[int] | None = None,
    resources: Resources = ALONE,
) -> list[TaskResult]:
    """What an executor says of these tasks (None: all)."""
    _, _, sizes = start(plan, resources)
    wanted = plan.tasks() if numbers is None else numbers
    return list(executor(plan, wanted, sinks, tools_of(plan, sizes, resources)))


def finish(plan: Plan, results: Sequence[TaskResult], folder: str | os.PathLike[str]) -> Tally:
    """Write what is not written by tasks, as ``execute`` does. AssertionError for a hole."""
    tally, _, _ = start(plan, ALONE)
    sinks = open_sinks(plan, folder)
    write_fixed(plan, sinks)
    for result in results:
        tally.add(result)
    tally.complete()
    write_deferred(plan, tally, sinks)
    close(sinks)
    return tally


def written(plan: Plan, folder: str | os.PathLike[str]) -> list[list[bytes]]:
    """The bytes of all files, by row."""
    return [
        [Path(folder, f"{row}-{file}").read_bytes() for file in range(len(output.files))]
        for row, output in enumerate(plan.outputs)
    ]


def published(plan: Plan) -> list[list[bytes]]:
    """The bytes of the files where ``execute`` put them, by row."""
    return [
        [Path(output.target.path or "", file.layout.name).read_bytes() for file in output.files]
        for output in plan.outputs
    ]


def made_by(
    executor: Executor,
    plan: Plan,
    folder: str | os.PathLike[str],
    resources: Resources = ALONE,
) -> list[list[bytes]]:
    """The bytes of all files as an executor makes them."""
    sinks = open_sinks(plan, folder)
    results = results_of(plan, executor, sinks, resources=resources)
    close(sinks)
    finish(plan, results, folder)
    return written(plan, folder)


def main(plan_path: str, folder: str, index: str, count: str, order: str) -> None:
    """In a process of its own: part ``index`` of ``count`` of a pickled plan, its tasks in the
    order of a list of numbers; the results are pickled beside the outputs."""
    plan = pickle.loads(Path(plan_path).read_bytes())
    sinks = open_sinks(plan, folder)
    numbers = [int(number) for number in order.split(",")]
    results = results_of(plan, part(int(index), int(count)), sinks, numbers)
    Path(folder, f"results-{index}").write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
