"""What a run may use, and how large its buffers are: pure values."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from swavg.errors import RequestError
from swavg.planning.plan import Plan

DEFAULT_MEMORY = 32 << 20
"""Bytes for buffers: with interpreters and NumPy the processes together stay under 96 MiB."""
_MORE_MEMORY = 4 << 20
"""Bytes for each worker that is asked for beyond the default number."""
_MOST_WORKERS = 8
_PROCESS = 2 << 20
"""Bytes that a forked process has for itself, buffers excepted."""

_BLOCK = 1 << 18
_GATHERED_BLOCK = 1 << 19
_ENOUGH = 1 << 16
"""Elements of a block from which on smaller ones cost time."""
_SMALLEST = 1 << 12


@dataclass(frozen=True, slots=True)
class Resources:
    """What a run may use. None of it changes the result."""

    device: str = "cpu"
    """``cpu``, ``cuda`` or ``cuda:N``."""
    threads: int | None = None
    """How many workers; None: the processors of this process, at most 8."""
    memory: int | None = None
    """Bytes for buffers; None: 32 MiB."""
    processes: bool | None = None
    """Workers are forked processes; None: where a fork is safe and pays, else threads."""
    check_crc: bool = False
    """Compare what is read with the checksums that PyTorch files hold."""

    @property
    def workers(self) -> int:
        """How many workers are wanted; RequestError for fewer than one."""
        if self.threads is None:
            return min(_MOST_WORKERS, processors())
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
    """Bytes per element of what a worker holds, at most: of an input, of a sum, of the output; for
    how many rows; and whether inputs are gathered from where they lie apart."""

    input_size: int = 1
    sum_size: int = 4
    output_size: int = 1
    rows: int = 1
    gathers: bool = False

    @classmethod
    def of(cls, plan: Plan) -> Needs:
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
        gathers = any(order is not None for _, order in entries.forms) or any(
            strides is not None for table in entries.tables for _, _, strides in table.columns.forms
        )
        return cls(input_size, sum_size, output_size, rows, gathers)

    def per_element(self) -> int:
        """Bytes of a worker's buffers for each element of a block."""
        kernel = self.input_size + (1 + self.rows + (self.rows > 1)) * self.sum_size
        gathered = 5 * self.input_size if self.gathers else self.input_size
        return kernel + gathered + self.rows * self.output_size


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many workers there are, and elements that each computes at once."""

    workers: int
    elements: int
    needs: Needs

    @property
    def memory(self) -> int:
        """Bytes of all buffers."""
        return self.workers * self.elements * self.needs.per_element()


def sizes(plan: Plan, resources: Resources, *, forked: bool) -> Sizes:
    """The best sizes within the memory; RequestError if it cannot do."""
    needs, wanted = Needs.of(plan), resources.workers
    limit = resources.memory
    if limit is None:
        limit = DEFAULT_MEMORY + _MORE_MEMORY * max(0, wanted - _MOST_WORKERS)
    for candidate in _candidates(wanted, needs):
        own = _PROCESS * candidate.workers if forked and candidate.workers > 1 else 0
        if candidate.memory + own <= limit:
            return candidate
    raise RequestError(
        f"{limit:,} bytes is too little: at least {candidate.memory:,} are needed.",
        argument="memory",
    )


def _candidates(workers: int, needs: Needs) -> Iterator[Sizes]:
    """Sizes, best first: smaller blocks, then fewer workers, then blocks that cost time."""
    elements = _GATHERED_BLOCK if needs.gathers else _BLOCK
    for count in range(workers, 0, -1):
        block = elements
        while block >= _ENOUGH:
            yield Sizes(count, block, needs)
            block //= 2
    block = _ENOUGH // 2
    while block >= _SMALLEST:
        yield Sizes(1, block, needs)
        block //= 2
