"""A Ray cluster runs the tasks: its nodes see the folders of inputs and outputs, and each worker
reads, sums and writes there itself. Sent are the plan, once, and numbers.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, cast, get_args

from swavg import __version__
from swavg.engine.compute import Sinks, TaskResult, Tools, run_task
from swavg.engine.executors import Executor, MakeTools
from swavg.engine.outputs import goes_to_store
from swavg.engine.resources import Engine, Resources, Sizes, sizes
from swavg.errors import (
    InputError,
    MissingDependencyError,
    OutputError,
    RequestError,
    SwavgError,
    WorkerError,
)
from swavg.planning.plan import Plan
from swavg.storage.destination import is_stream
from swavg.storage.sinks import FileSink, SharedFile
from swavg.storage.temporary import Temporary, clear_partials, remove

if TYPE_CHECKING:
    from ray import ObjectRef

_CONNECTING = 5.0
"""Seconds for the head of a cluster to answer."""
_LOOKING = 120.0
"""Seconds for a node to look whether it sees all files: its first worker starts meanwhile."""
_AHEAD = 2
"""Tasks on their way for each processor: it finds the next one there."""
_AGAIN = 3
"""Times that a task is run again whose worker or node was lost."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The cluster that this process is connected to. ``nodes`` are names of those that have
    processors, by their ids; ``largest`` is how many processors one has at most."""

    nodes: Mapping[str, str]
    processors: int
    largest: int

    def sizes(self, plan: Plan, resources: Resources) -> Sizes:
        """Those of the largest node, and workers of all. RequestError if the memory cannot do."""
        workers = min(resources.threads or self.processors, self.processors)
        of_node = replace(resources, threads=min(workers, self.largest))
        chosen = sizes(plan, of_node, forked=False)
        return replace(chosen, workers=min(workers, chosen.workers * len(self.nodes)))


@contextmanager
def engine(plan: Plan, resources: Resources) -> Iterator[Cluster | None]:
    """What runs the tasks in the block, but for this machine (None). While it is a cluster,
    standard output is standard error: Ray writes there. RequestError if there is none."""
    if resources.engine not in get_args(Engine):
        raise RequestError(f"is local or ray, not '{resources.engine}'.", argument="engine")
    if resources.engine == "local":
        if resources.address is not None:
            raise RequestError("needs engine=ray.", argument="address")
        yield None
        return
    _check(plan, resources)
    with _no_stdout(), _connected(resources.address) as cluster:
        yield cluster


def _check(plan: Plan, resources: Resources) -> None:
    """RequestError for what a cluster does not do."""
    if resources.device != "cpu":
        raise RequestError("engine=ray computes on processors, and takes no device=.")
    paths = [output.target.path for output in plan.outputs]
    if goes_to_store(plan) or any(path is None or is_stream(path) for path in paths):
        raise RequestError(
            "engine=ray writes a file or a folder that all nodes see: no stream, no object store.",
            hint="Give output= such a path, and copy it from there.",
        )


def _resolved(address: str | None) -> str:
    """``HOST:PORT`` of a cluster, which answers. RequestError."""
    from ray._private.services import canonicalize_bootstrap_address_or_die

    wanted = address or os.environ.get("RAY_ADDRESS") or "auto"
    if "://" in wanted:
        raise RequestError(
            f"is HOST:PORT of a cluster that this machine is a node of, not '{wanted}'.",
            argument="address",
            hint="From elsewhere: ray job submit -- swavg ... --engine ray",
        )
    try:
        found: str = canonicalize_bootstrap_address_or_die(wanted)
    except ConnectionError:
        _raise_no_cluster("No Ray cluster runs on this machine.")
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECTING).close()
    except (OSError, ValueError):
        _raise_no_cluster(f"No Ray cluster answers at {found}.")
    return found


def _raise_no_cluster(problem: str) -> NoReturn:
    raise RequestError(
        problem,
        hint="Start one with ray start --head (ray start --address=HEAD:6379 on other nodes), or"
        " say with address= where it is.",
    )


class _ForRay(io.TextIOBase):
    """Standard error, but for what Ray's own threads say: of workers that were lost."""

    def __init__(self) -> None:
        super().__init__()
        self._owner = threading.get_ident()

    def write(self, text: str) -> int:
        return sys.stderr.write(text) if threading.get_ident() == self._owner else len(text)


@contextmanager
def _no_stdout() -> Iterator[None]:
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(_ForRay()):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def _connected(wanted: str | None) -> Iterator[Cluster]:
    try:
        import ray
    except ImportError:
        raise MissingDependencyError(
            "engine=ray needs Ray.", hint="Run pip install 'swavg[ray]' on all nodes."
        ) from None
    if ray.is_initialized():
        # The caller's: it stays.
        yield _cluster()
        return
    address = _resolved(wanted)
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (RuntimeError, ConnectionError, ray.exceptions.RayError) as error:
        raise RequestError(f"The Ray cluster at {address} refuses: {_first_line(error)}") from None
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
        yield _cluster()
    finally:
        ray.shutdown()


def _cluster() -> Cluster:
    import ray

    nodes, processors = {}, []
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        count = int(node["Resources"].get("CPU", 0))
        if node["Alive"] and count:
            nodes[node["NodeID"]] = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            processors.append(count)
    if not nodes:
        raise RequestError("The Ray cluster has no processors.")
    return Cluster(nodes, sum(processors), max(processors))


def on_ray(cluster: Cluster, workers: int) -> Executor:
    """Up to ``workers`` of the cluster's processors at once, within :func:`engine`. Results come
    in any order; a task whose worker or node was lost is run again."""
    ahead = _AHEAD * workers if workers == cluster.processors else workers

    def run(
        plan: Plan, numbers: Sequence[int], sinks: Sinks, make: MakeTools
    ) -> Iterator[TaskResult]:
        with _tokens([cast(FileSink, sink) for row in sinks for sink in row]) as tokens:
            job = _Job(cluster, ahead, Work(plan, make, sinks, tokens, os.getcwd()))
            try:
                job.look()
                yield from job.results(numbers)
            finally:
                job.cancel()

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

    def look(self) -> None:
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
            ray.cancel(ref, force=True)
            self._raise_unseen(asked[ref], Problem("", "does not answer"))
        gone = 0
        for ref in answered:
            try:
                problem = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                problem = Problem("", f"cannot run swavg: {_first_line(error.cause)}")
            except ray.exceptions.RayError:
                # Lost a moment ago.
                gone += 1
                continue
            if problem is not None:
                self._raise_unseen(asked[ref], problem)
        if gone == len(asked):
            raise WorkerError("All nodes of the Ray cluster are gone.")

    def _raise_unseen(self, node: str, problem: Problem) -> NoReturn:
        for checkpoint in self._plan.checkpoints:
            for source in checkpoint.sources:
                source.check()
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
            raise failures[min(failures)]

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
                    f" {_first_line(error)}",
                    hint="If memory was short, use a smaller memory=.",
                )
            else:
                self._submit(number)
        else:
            result.lost = self._lost.get(number, 0)
            if not failures:
                yield result

    def cancel(self) -> None:
        """Nothing of it runs any more."""
        import ray

        for ref in self._waiting:
            ray.cancel(ref, force=True)


def _cause(error: Any) -> BaseException:
    """The error of ours, or of Python, that ended a task."""
    cause: BaseException = error.cause
    if not isinstance(cause, SwavgError):
        cause.__cause__ = RuntimeError(str(error))
    return cause


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
    for checkpoint in work.plan.checkpoints:
        for source in checkpoint.sources:
            try:
                source.check()
            except InputError as error:
                return Problem(source.name, f"does not see what is here: {error.problem}")
    return None
