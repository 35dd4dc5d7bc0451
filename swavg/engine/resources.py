"""What a run may use, and how large its buffers are: pure values."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from swavg.engine.ahead import FETCHED, read_for_one
from swavg.errors import RequestError
from swavg.formats.tensors import GATHERING
from swavg.planning.plan import Plan

Engine = Literal["local", "ray"]
"""What runs the tasks."""

DEFAULT_MEMORY = 32 << 20
"""Bytes for blocks: with interpreters and NumPy the processes together stay under 96 MiB."""
DEVICE_MEMORY = 256 << 20
"""The same for what a device computes, where PyTorch and the driver take several times as much."""
_MORE_MEMORY = 4 << 20
"""Bytes for each worker that is asked for beyond the default number."""
_MOST_WORKERS = 8
_FEEDING = 4
"""Workers that read for a device."""
_FETCHING = 6
"""Workers where inputs are in a store, whatever the processors: each waits most of its time."""
_STORES = 8 << 20
"""Bytes that come off the buffers for those of the connections."""
_PROCESS = 3 << 20
"""Bytes that a forked process has for itself: pages that it no longer shares."""
_WORKER = 2 << 20
"""Of these the bytes that come off the buffers, for each of the first workers."""
_CONSTANT = 1 << 19
"""Bytes of a worker's buffers whose size is always the same."""

_BLOCK = 1 << 18
_DEVICE_BLOCK = 1 << 21
"""Elements of a block where a device computes: each call to it takes its time."""
_ENOUGH = 45_000
"""Elements of a block from which on smaller ones cost more time than a worker less."""
_SMALLEST = 1 << 12
_DECODING = 2
"""Rows of chunks that decoding one takes: the chunks, and the row or what is stored of it."""
INTEGERS = 2
"""Bytes per element of a block for the integers that are held of all inputs."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a run may use. None of it changes the result."""

    device: str = "cpu"
    """``cpu``, ``cuda`` or ``cuda:N``."""
    threads: int | None = None
    """How many workers; None: the processors of this process, at most 8 (4 for a device), or 6
    where inputs are in a store."""
    memory: int | None = None
    """Bytes for blocks of tensors; None: 32 MiB for up to 8 workers (256 MiB for a device, 72 MiB
    where inputs are in a store), and what compressed chunks take."""
    processes: bool | None = None
    """Workers are forked processes; None: where a fork is safe and pays, else threads."""
    check_crc: bool = False
    """Compare what is read with the checksums that PyTorch files hold."""
    engine: Engine = "local"
    """``ray``: the processors of a Ray cluster, whose nodes see all files under the same paths;
    ``threads`` is then the number of all workers, and ``memory`` for those of one node."""
    address: str | None = None
    """``HOST:PORT`` of the cluster; None: what ``RAY_ADDRESS`` says, or the one of this machine."""

    @property
    def workers(self) -> int:
        """How many workers are wanted; RequestError for fewer than one."""
        if self.threads is None:
            return min(_MOST_WORKERS if self.device == "cpu" else _FEEDING, processors())
        if self.threads < 1:
            raise RequestError("is at least 1.", argument="threads")
        return self.threads


def processors() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Needs:
    """What decides how many bytes a worker holds for each element of a block."""

    input_size: int = 1
    """Bytes of an input's element, at most."""
    sum_size: int = 4
    output_size: int = 1
    rows: int = 1
    """Sums that are made of one read, at most."""
    gathers: bool = False
    """Some inputs lie apart."""
    integers: bool = False
    """Of some tensors the elements of all inputs are held at once."""
    device: str = "cpu"

    @classmethod
    def of(cls, plan: Plan, device: str = "cpu") -> Needs:
        """What the entries of a plan need."""
        input_size, sum_size, output_size, rows = 1, 4, 1, 1
        entries = plan.entries
        for table in entries.tables:
            for dtype, _, _ in table.columns.forms:
                input_size = max(input_size, -(-dtype.part.bits // 8))
        for operation in entries.operations:
            output_size = max(output_size, -(-operation.dtype.part.bits // 8))
            rows = max(rows, len(operation.terms))
            if operation.op == "average" and operation.accumulate == "float64":
                sum_size = 8
        integers = any(operation.op == "integer" for operation in entries.operations)
        return cls(input_size, sum_size, output_size, rows, entries.gathered, integers, device)

    def per_element(self) -> int:
        """Bytes of a worker's buffers for each element of a block."""
        sums = (1 + self.rows + (self.rows > 1)) * self.sum_size
        # The torch kernel reads one input while another is copied; its sums are on the device.
        kernel = self.input_size + sums if self.device == "cpu" else 2 * self.input_size + 8
        held = INTEGERS if self.integers else 0
        return kernel + held + (self.rows + 2) * self.output_size


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many workers there are, and elements that each computes at once."""

    workers: int
    elements: int
    needs: Needs
    room: int = 0
    """Bytes that each holds of inputs that lie apart; reading them takes :data:`GATHERING`."""
    fetched: int = 0
    """Bytes that each has fetched of objects in a store."""

    @property
    def memory(self) -> int:
        """Bytes of all buffers whose size is not always the same."""
        gathering = self.room + min(4 * self.room, GATHERING)
        return self.workers * (self.elements * self.needs.per_element() + gathering + self.fetched)


def sizes(plan: Plan, resources: Resources, *, forked: bool) -> Sizes:
    """The best sizes within the memory; RequestError if it cannot do."""
    needs, wanted = Needs.of(plan, resources.device), resources.workers
    fetched = 0
    if plan.remote:
        # A worker that waits for a store takes no processor.
        wanted = _FETCHING if resources.threads is None else wanted
        fetched = int(plan.cut * read_for_one(plan.entries))
    limit, extras = resources.memory, [each.extras for each in plan.checkpoints]
    held = sum(each.held for each in extras)
    held += _DECODING * max((each.decoded for each in extras), default=0)
    if held:
        # Workers in several places would decode each chunk several times.
        wanted = 1
    if limit is None:
        more = _MORE_MEMORY - _PROCESS if forked else _MORE_MEMORY
        limit = DEFAULT_MEMORY if needs.device == "cpu" else DEVICE_MEMORY
        limit += more * max(0, wanted - _MOST_WORKERS)
        limit += held - (_WORKER * min(wanted, _MOST_WORKERS) if forked else 0)
        if plan.remote:
            limit += wanted * FETCHED - _STORES
    share = max(0, limit - held) // (2 * wanted)
    room = min(plan.cut, max(share - GATHERING, share // 5)) if needs.gathers else 0
    for candidate in _candidates(wanted, needs, room, fetched):
        if candidate.memory + _CONSTANT * (candidate.workers - 1) <= limit - held:
            return candidate
    decoded = f", of these {held:,} for chunks that are decoded" if held else ""
    needed = candidate.memory + held
    raise RequestError(
        f"{limit:,} bytes is too little: at least {needed:,} are needed{decoded}.",
        argument="memory",
    )


def _candidates(workers: int, needs: Needs, room: int, fetched: int) -> Iterator[Sizes]:
    """Sizes, best first: smaller blocks, then fewer workers, then blocks that cost time."""
    for count in range(workers, 0, -1):
        block = _BLOCK if needs.device == "cpu" else _DEVICE_BLOCK
        while block >= (_ENOUGH if count > 1 else _SMALLEST):
            yield Sizes(count, block, needs, room, fetched)
            block -= block // 4
