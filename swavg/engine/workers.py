"""Who does the tasks of a plan: how many workers, of which kind, and with which tools."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from swavg.engine.compute import Tools
from swavg.engine.executors import Executor, threads
from swavg.engine.forked import can_fork, forked
from swavg.engine.outputs import goes_to_store, goes_to_stream
from swavg.engine.report import Tally, read_and_written
from swavg.engine.resources import Resources, Sizes, sizes
from swavg.errors import RequestError
from swavg.planning.plan import Plan

if TYPE_CHECKING:
    from swavg.engine.ray.connection import Cluster

_WORTH_A_FORK = 32 << 20
"""Bytes to read from which on processes pay."""


@contextmanager
def cluster_of(plan: Plan, resources: Resources) -> Iterator[Cluster | None]:
    """The cluster that runs the tasks in the block; None: this machine does. RequestError if there
    is none, or for another engine."""
    if resources.engine == "ray":
        from swavg.engine.ray.connection import connected

        with connected(plan, resources) as cluster:
            yield cluster
        return
    if resources.engine != "local":
        raise RequestError(f"is local or ray, not '{resources.engine}'.", argument="engine")
    if resources.address is not None:
        raise RequestError("needs engine=ray.", argument="address")
    yield None


def start(
    plan: Plan, resources: Resources, cluster: Cluster | None = None
) -> tuple[Tally, Executor, Sizes]:
    """What counts a run; the executor, of ``cluster`` or of this machine (None); and the sizes of
    its buffers. RequestError if the device, or the memory, cannot do it."""
    if resources.device not in ("cpu", "torch"):
        from swavg.engine.kernels.torch import check_device

        check_device(resources.device)
    sums = [read_and_written(plan, row) for row in range(len(plan.rows))]
    total, planned = sum(read for read, _ in sums), sum(written for _, written in sums)
    forks = _forks(plan, resources, total)
    # Here NumPy is imported, which may start threads of its own, and end this process if it is
    # short of memory: before there is any file.
    from swavg.engine.distances import Distances

    if cluster is None:
        chosen = sizes(plan, resources, forked=forks)
    else:
        chosen = cluster.sizes(plan, resources)
    forks = forks and chosen.workers > 1 and can_fork()
    rows = plan.rows if plan.distances else ()
    # The parts of one output are measured as one.
    whole = [Distances(len(row.members)) for row in rows[:: plan.width]]
    distances = tuple(whole[number // plan.width] for number in range(len(rows)))
    if cluster is not None:
        from swavg.engine.ray.executor import on_ray

        executor = on_ray(cluster, chosen.workers)
    else:
        executor = forked(chosen.workers) if forks else threads(chosen.workers)
    return Tally(plan, total, planned, distances), executor, chosen


def _forks(plan: Plan, resources: Resources, total: int) -> bool:
    """Whether forked processes may do it, and ``total`` bytes to read are worth them."""
    wanted = resources.processes
    if wanted is None:
        wanted = total >= _WORTH_A_FORK
    return (
        wanted
        and (resources.engine, resources.device) == ("local", "cpu")
        and can_fork()
        and all(source.forks for source in plan.sources)
        and not goes_to_store(plan)
        and not goes_to_stream(plan)
    )


def tools_of(
    plan: Plan, chosen: Sizes, resources: Resources, *, journaled: bool = False
) -> Callable[[], Tools]:
    """What makes a worker's tools."""
    positions = None
    if plan.distances:
        from swavg.engine.distances import positions_of

        positions = positions_of(plan)
    # Loaded here, so that forked processes share it.
    if resources.device == "cpu":
        import swavg.engine.kernels.repair  # noqa: F401
    for operation in plan.entries.operations:
        if operation.op in ("average", "integer"):
            operation.dtype.part.numpy()
    for table in plan.entries.tables:
        for dtype, _, _ in table.columns.forms:
            dtype.part.numpy()
    check_crc = resources.check_crc
    return partial(
        Tools, plan, chosen, resources.device, positions, check_crc=check_crc, journaled=journaled
    )
