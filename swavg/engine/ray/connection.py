"""The cluster that a run uses: found, connected to, and left."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, NoReturn

from swavg.engine.outputs import goes_to_store, goes_to_stream
from swavg.engine.resources import Resources, Sizes, sizes
from swavg.errors import MissingDependencyError, RequestError, first_line
from swavg.planning.plan import Plan

_Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None
_CONNECTING = 5.0
"""Seconds for the head of a cluster to answer."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The cluster that this process is connected to. ``nodes`` are names of those that have
    processors, by their ids; ``largest`` is how many processors one has at most."""

    nodes: Mapping[str, str]
    processors: int
    largest: int

    def sizes(self, plan: Plan, resources: Resources) -> Sizes:
        """Those of the largest node, and workers of all. RequestError if the memory cannot do."""
        wanted = self.processors if resources.threads is None else resources.workers
        workers = min(wanted, self.processors)
        of_node = replace(resources, threads=min(workers, self.largest))
        chosen = sizes(plan, of_node, forked=False)
        return replace(chosen, workers=min(workers, chosen.workers * len(self.nodes)))


@contextmanager
def connected(plan: Plan, resources: Resources) -> Iterator[Cluster]:
    """The cluster that runs the tasks in the block, where standard output is standard error: Ray
    writes there. RequestError if there is none, or for what it does not do."""
    _check(plan, resources)
    with _no_stdout(), _connected(resources.address) as cluster:
        yield cluster


def _check(plan: Plan, resources: Resources) -> None:
    """RequestError for what a cluster does not do."""
    if resources.device != "cpu":
        raise RequestError("engine=ray computes on processors, and takes no device=.")
    if goes_to_store(plan) or goes_to_stream(plan):
        raise RequestError(
            "engine=ray writes a file or a folder that all nodes see: no stream, no object store.",
            hint="Give output= such a path, and copy it from there.",
        )


def _resolved(address: str | None) -> str:
    """``HOST:PORT`` of a cluster, which answers. RequestError."""
    from ray._private.services import canonicalize_bootstrap_address_or_die

    wanted = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        if "://" in wanted:
            raise ValueError("another protocol")
        found: str = canonicalize_bootstrap_address_or_die(wanted)
    except ValueError:
        raise RequestError(
            f"is HOST:PORT of a cluster that this machine is a node of, not '{wanted}'.",
            argument="address",
            hint="From elsewhere: ray job submit -- swavg ... --engine ray",
        ) from None
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

    def write(self, text: str) -> int:
        rays = threading.current_thread().name.startswith("ray_")
        return len(text) if rays else sys.stderr.write(text)


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
    try:
        _init(address)
        yield _cluster()
    finally:
        # It says what its threads have kept back.
        with contextlib.redirect_stdout(None):
            ray.shutdown()
        # Ray leaves the system's own.
        _set_sigterm(signal.getsignal(signal.SIGTERM))


def _init(address: str) -> None:
    import ray

    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (RuntimeError, ConnectionError, ray.exceptions.RayError) as error:
        raise RequestError(f"The Ray cluster at {address} refuses: {first_line(error)}") from None
    finally:
        # Ray sets its own.
        _set_sigterm(before)


def _set_sigterm(handler: _Handler) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


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
