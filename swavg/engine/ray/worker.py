"""What runs on the nodes: whether they see all files, and tasks."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from swavg import __version__
from swavg.engine.compute import Tools, run_task
from swavg.engine.results import Sinks, TaskResult
from swavg.errors import InputError, OutputError
from swavg.planning.plan import Plan
from swavg.storage.sinks import SharedFile


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker gets."""

    plan: Plan
    make: Callable[[], Tools]
    sinks: Sinks
    tokens: Sequence[str]
    folder: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a node is of no use: what it is that ``path`` (empty: the output) does not find there."""

    path: str
    problem: str

    def on(self, node: str, plan: Plan) -> OutputError:
        """The error that names it."""
        return OutputError(
            self.path or plan.outputs[0].target.path or "",
            f"node {node} of the Ray cluster {self.problem}",
            hint="All nodes need the same swavg, and see all inputs and the folder of the output"
            " under the same paths. Else make it in parts, such as part=1/8.",
        )


class _Worker:
    """What a worker process has of a job: opened once."""

    def __init__(self, work: Work) -> None:
        self.plan, self.sinks, self.tools = work.plan, work.sinks, work.make()

    def run(self, number: int) -> TaskResult:
        import ray

        result = run_task(self.plan, number, self.tools, self.sinks)
        for row in self.sinks:
            for sink in row:
                cast(SharedFile, sink).settle()
        result.node = ray.get_runtime_context().get_node_id()
        return result


_workers: dict[str, _Worker] = {}


def run_number(data: bytes, key: str, number: int) -> TaskResult:
    """In a worker: run a task of the job ``key``."""
    if key not in _workers:
        work = _opened(data)
        problem = _unseen(work)
        if problem is not None:
            # A node that came later than the others were asked.
            raise problem.on(socket.gethostname(), work.plan)
        _workers[key] = _Worker(work)
    return _workers[key].run(number)


def look(version: str, data: bytes, key: str) -> Problem | None:
    """In a worker on each node: what it does not see."""
    if version != __version__:
        return Problem("", f"has swavg {__version__}, and this machine {version}")
    work = _opened(data)
    problem = _unseen(work)
    if problem is None:
        _workers[key] = _Worker(work)
    return problem


def _opened(data: bytes) -> Work:
    work: Work = pickle.loads(data)
    # Paths may be relative. Where that folder is not seen, these are not.
    with contextlib.suppress(OSError):
        os.chdir(work.folder)
    return work


def _unseen(work: Work) -> Problem | None:
    for token in work.tokens:
        if not os.path.exists(token):
            return Problem(os.path.dirname(token), "does not see this folder")
        if not os.access(token, os.W_OK):
            return Problem(os.path.dirname(token), "may not write into this folder")
    for source in work.plan.sources:
        try:
            source.check()
        except InputError as error:
            return Problem(source.name, f"does not see what is here: {error.problem}")
    return None
