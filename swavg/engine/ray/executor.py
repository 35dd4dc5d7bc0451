"""The executor that sends numbers of tasks to a cluster."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, cast

from swavg import __version__
from swavg.engine.executors import Executor, MakeTools
from swavg.engine.ray.connection import Cluster
from swavg.engine.ray.worker import Problem, Work, look, run_number
from swavg.engine.results import Sinks, TaskResult
from swavg.errors import OutputError, SwavgError, WorkerError, first_line
from swavg.planning.plan import Plan
from swavg.storage.paths import check_all
from swavg.storage.sinks import FileSink
from swavg.storage.temporary import Temporary, clear_partials, remove

if TYPE_CHECKING:
    from ray import ObjectRef

_LOOKING = 120.0
"""Seconds for a node to look whether it sees all files: its first worker starts meanwhile."""
_AHEAD = 2
"""Tasks on their way for each processor: it finds the next one there."""
_AGAIN = 3
"""Times that a task is run again whose worker or node was lost."""


def on_ray(cluster: Cluster, workers: int) -> Executor:
    """Up to ``workers`` of the cluster's processors at once, within :func:`connected`. Results come
    in any order; a task whose worker or node was lost is run again."""
    ahead = _AHEAD * workers if workers == cluster.processors else workers

    def run(
        plan: Plan, numbers: Sequence[int], sinks: Sinks, make: MakeTools
    ) -> Iterator[TaskResult]:
        with _tokens([cast(FileSink, sink) for row in sinks for sink in row]) as tokens:
            job = _Job(cluster, ahead, Work(plan, make, sinks, tokens, os.getcwd()))
            job.ask_nodes()
            # After an error those on their way go on until the connection ends: ray.cancel may end
            # this process when they do.
            yield from job.results(numbers)

    return run


@contextmanager
def _tokens(files: Sequence[FileSink]) -> Iterator[list[str]]:
    """A file of a name that exists nowhere else in each folder of the outputs: who sees it sees
    these. What was written before is handed over."""
    with contextlib.ExitStack() as stack:
        tokens: dict[str, str] = {}
        for file in files:
            file.hand_over()
            folder = os.path.dirname(os.path.abspath(file.path))
            if folder not in tokens:
                target = os.path.join(folder, os.path.basename(file.shown.rstrip("/")))
                # Those of runs that were killed.
                clear_partials(target)
                token = Temporary(target)
                token.create(folder=False, shown=file.shown)
                stack.callback(token.close)
                stack.callback(remove, token.path)
                tokens[folder] = token.path
        yield [*tokens.values()]


class _Job:
    """The tasks of one run, on their way and lost."""

    def __init__(self, cluster: Cluster, ahead: int, work: Work) -> None:
        import ray

        self._cluster, self._ahead, self._plan = cluster, ahead, work.plan
        # As bytes: a worker that has it already only copies it.
        self._work = ray.put(pickle.dumps(work, pickle.HIGHEST_PROTOCOL))
        self._key = self._work.hex()
        self._task = ray.remote(run_number).options(num_cpus=1, max_retries=0)
        self._waiting: dict[ObjectRef[Any], int] = {}
        self._lost: dict[int, int] = {}

    def ask_nodes(self) -> None:
        """OutputError if a node does not see the inputs or the folders of the outputs."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        probe, asked = ray.remote(look), {}
        for node in self._cluster.nodes:
            only_there = probe.options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            asked[only_there.remote(__version__, self._work, self._key)] = node
        answered, silent = ray.wait([*asked], num_returns=len(asked), timeout=_LOOKING)
        for ref in silent:
            self._raise_unseen(asked[ref], Problem("", "does not answer"))
        gone = 0
        for ref in answered:
            try:
                problem = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                problem = Problem("", f"cannot run swavg: {first_line(error.cause)}")
            except ray.exceptions.RayError:
                # Lost a moment ago.
                gone += 1
                continue
            if problem is not None:
                self._raise_unseen(asked[ref], problem)
        if gone == len(asked):
            raise WorkerError("All nodes of the Ray cluster are gone.")

    def _raise_unseen(self, node: str, problem: Problem) -> NoReturn:
        # Where it is the input that changed, no node is to blame.
        check_all(self._plan.sources)
        raise problem.on(self._cluster.nodes[node], self._plan)

    def results(self, numbers: Sequence[int]) -> Iterator[TaskResult]:
        """Those of these tasks. Of errors the first by number is raised."""
        left = iter(numbers)
        failures: dict[int, BaseException] = {}
        while True:
            while not failures and len(self._waiting) < self._ahead:
                number = next(left, None)
                if number is None:
                    break
                self._submit(number)
            # After a failure, those with lower numbers: they are on their way, and may fail too.
            if not self._waiting or (failures and min(self._waiting.values()) > min(failures)):
                break
            yield from self._next(failures)
        if failures:
            error = failures[min(failures)]
            if isinstance(error, OutputError):
                check_all(self._plan.sources)
            raise error

    def _submit(self, number: int) -> None:
        ref = self._task.remote(self._work, self._key, number)
        self._waiting[ref] = number

    def _next(self, failures: dict[int, BaseException]) -> Iterator[TaskResult]:
        """Wait for a task: its result, or nothing if it failed, is to be run again, or takes its
        time."""
        import ray

        done, _ = ray.wait([*self._waiting], num_returns=1, timeout=_LOOKING)
        if not done:
            if not ray.cluster_resources().get("CPU"):  # type: ignore[no-untyped-call]
                raise WorkerError("The Ray cluster has no processors any more.")
            return
        (ref,) = done
        number = self._waiting.pop(ref)
        try:
            result: TaskResult = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            failures[number] = _cause(error)
        except ray.exceptions.RayError as error:
            self._lost[number] = lost = self._lost.get(number, 0) + 1
            if lost > _AGAIN:
                failures[number] = WorkerError(
                    f"A worker of the Ray cluster ended before it was done, {lost} times:"
                    f" {first_line(error)}",
                    hint="If memory was short, use a smaller memory=.",
                )
            else:
                self._submit(number)
        else:
            result.lost = self._lost.get(number, 0)
            if not failures:
                yield result


def _cause(error: Any) -> BaseException:
    """The error of ours, or of Python, that ended a task."""
    cause: BaseException = error.cause or RuntimeError(str(error))
    if not isinstance(cause, SwavgError):
        cause.__cause__ = RuntimeError(str(error))
    return cause
