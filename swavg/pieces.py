"""What a run may use, and the pieces that its tasks are cut into: pure values."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from swavg.errors import RequestError
from swavg.formats.base import Layout, Task
from swavg.plan import accumulator
from swavg.policy import Policy

DEFAULT_MEMORY = 32 << 20
"""Bytes for buffers: with interpreters and NumPy the processes together stay under 96 MiB."""

_BLOCK = 1 << 18
_BLOCKS = 4
_SMALLEST_CHUNK = 1 << 12
_LONGEST_RUN = 4096

# Processes do not wait for each other between blocks, so theirs may be as small as a core's own
# cache; larger ones are faster still, while the memory of all together stays small.
_PROCESS_BLOCK = 1 << 16
_PROCESS_BLOCKS = 1 << 19
"""Elements of the blocks of all processes together, unless they are the smallest."""
_PROCESS_CHUNK = 1 << 21
"""Bytes that a process hands over at a time, at most (and 2^20 elements, as threads do)."""
_PROCESS_MEMORY = 6 << 20
_PROCESS_MEMORY_PER_TASK = 512
"""Bytes that a forked process has for itself, buffers excepted: also of the plan, whose pages do
not all stay shared."""
_WORTH_A_FORK = 32 << 20
"""Bytes to read from which on processes pay."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a run may use: ``device`` (cpu, cuda or cuda:N), ``threads`` (how many workers; None:
    the processors of this process), ``memory`` in bytes for buffers (None: 32 MiB), and
    ``processes`` (None: workers are processes where a fork is safe and pays, else threads). None
    changes the result."""

    device: str = "cpu"
    threads: int | None = None
    memory: int | None = None
    processes: bool | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """Workers and sizes, within a bound on memory.

    A kernel computes blocks of ``elements``, few enough for the processor's cache; a worker hands
    over chunks of ``blocks`` blocks, large enough that handing over costs nothing. ``spare`` is
    the number of chunks beyond one per worker.
    """

    workers: int
    elements: int
    blocks: int
    input_size: int
    sum_size: int
    output_size: int
    gathers: bool
    rows: int = 1
    processes: bool = False
    spare: int = 2

    @property
    def memory(self) -> int:
        """Bytes of all buffers."""
        per_worker = self.input_size * (6 if self.gathers else 1)
        per_worker += (1 + self.rows) * self.sum_size
        buffers = (self.workers + self.spare) * self.blocks * self.output_size * self.rows
        return self.elements * (self.workers * per_worker + buffers)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk at most."""
        return self.elements * self.blocks * self.output_size

    @classmethod
    def within(
        cls,
        resources: Resources,
        layouts: Sequence[Layout],
        policy: Policy,
        rows: int = 1,
        can_fork: Callable[[], bool] = lambda: False,
    ) -> Budget:
        """The best budget for these tasks, computed for ``rows`` outputs at once; RequestError if
        the memory cannot do."""
        workers = resources.threads
        if workers is None:
            workers = (
                len(os.sched_getaffinity(0))
                if hasattr(os, "sched_getaffinity")
                else os.cpu_count() or 1
            )
        if workers < 1:
            raise RequestError("--threads is at least 1.")
        limit = DEFAULT_MEMORY if resources.memory is None else resources.memory
        input_size, sum_size, output_size, gathers, reads = 1, 4, 1, False, 0
        for layout in layouts:
            for task in layout.tasks:
                output_size = max(output_size, -(-task.dtype.part.bits // 8))
                for source in task.sources:
                    reads += source.spec.nbytes
                    input_size = max(input_size, -(-source.spec.dtype.part.bits // 8))
                    gathers = gathers or source.extent.strides is not None
                if task.kind == "average" and accumulator(task, policy) == "float64":
                    sum_size = 8
        budget = cls(workers, _BLOCK, _BLOCKS, input_size, sum_size, output_size, gathers, rows)
        wanted = resources.processes
        if wanted is None:
            wanted = reads // rows >= _WORTH_A_FORK
        if wanted and resources.device == "cpu" and can_fork():
            found = budget._for_processes(limit, sum(len(layout.tasks) for layout in layouts))
            if found is not None:
                return found
        while budget.memory > limit and budget.blocks > 1:
            budget = replace(budget, blocks=budget.blocks // 2)
        while budget.memory > limit and budget.elements > 1 << 16:
            budget = replace(budget, elements=budget.elements // 2)
        while budget.memory > limit and budget.workers > 1:
            budget = replace(budget, workers=budget.workers - 1)
        while budget.memory > limit and budget.elements > _SMALLEST_CHUNK:
            budget = replace(budget, elements=budget.elements // 2)
        if budget.memory > limit:
            raise RequestError(
                f"--memory {limit:,} bytes is too little: at least {budget.memory:,} are needed."
            )
        return budget

    def _for_processes(self, limit: int, tasks: int) -> Budget | None:
        """The same for processes, as many as have room; None if that is not even two."""
        own = _PROCESS_MEMORY + _PROCESS_MEMORY_PER_TASK * tasks
        workers = min(self.workers, limit // own)
        elements = self.elements
        while elements > _PROCESS_BLOCK and elements * workers > _PROCESS_BLOCKS:
            elements //= 2
        blocks = max(1, min(_PROCESS_CHUNK // self.output_size, 1 << 20) // elements)
        budget = replace(self, workers=workers, elements=elements, blocks=blocks, processes=True)
        # What the plan costs each process comes off the buffers of all.
        limit -= _PROCESS_MEMORY_PER_TASK * tasks * workers
        while budget.memory > limit and budget.blocks > 1:
            budget = replace(budget, blocks=budget.blocks // 2)
        while budget.memory > limit and budget.elements > _PROCESS_BLOCK:
            budget = replace(budget, elements=budget.elements // 2)
        while budget.memory > limit and budget.workers > 1:
            budget = replace(budget, workers=budget.workers - 1)
        return budget if budget.workers > 1 else None


@dataclass(frozen=True, slots=True)
class Run:
    """Successive tasks of a layout that are computed as one: ``count`` of them from ``first`` on,
    with ``numel`` elements in all."""

    first: int
    count: int
    numel: int

    def rows(self, layouts: Sequence[Layout]) -> tuple[Task, ...]:
        """The one task, in each of the layouts."""
        tasks = (layout.tasks[self.first] for layout in layouts)
        return tuple(task if self.count == 1 else _widened(task, self.numel) for task in tasks)


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements ``[start, start + count)`` of a run of tasks, in one or more outputs (``rows``: the
    same tensor with other weights). ``tasks`` are those of the first layout, unjoined."""

    rows: tuple[Task, ...]
    start: int
    count: int
    run: Run
    tasks: Sequence[Task]

    @property
    def task(self) -> Task:
        """The task of the first output."""
        return self.rows[0]

    @property
    def nbytes(self) -> int:
        """Bytes in each output."""
        return self.task.dtype.nbytes(self.count)

    @property
    def nbytes_read(self) -> int:
        return sum(source.spec.dtype.nbytes(self.count) for source in union(self.rows)[1])

    def blocks(self, most: int) -> Iterator[Piece]:
        """The piece cut into blocks of at most ``most`` elements."""
        for start in range(self.start, self.start + self.count, most):
            count = min(most, self.start + self.count - start)
            yield replace(self, start=start, count=count)

    def locate(self, index: int) -> tuple[str, tuple[int, ...]]:
        """Name and index of the ``index``-th element of the piece (counted from its start)."""
        rest = self.start + index
        for task in self.tasks[self.run.first : self.run.first + self.run.count]:
            if rest < task.numel:
                break
            rest -= task.numel
        position = []
        for extent in reversed(task.shape):
            position.append(rest % extent)
            rest //= extent
        return task.name, tuple(reversed(position))


def union(rows: Sequence[Task]) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """The inputs that any of the rows reads, in order, and their tensors."""
    if len(rows) == 1:
        return rows[0].inputs, rows[0].sources
    found = {
        index: source for row in rows for index, source in zip(row.inputs, row.sources, strict=True)
    }
    inputs = tuple(sorted(found))
    return inputs, tuple(found[index] for index in inputs)


def runs(layouts: Sequence[Layout]) -> Iterator[Run]:
    """The runs of layouts that differ in weights only: tasks whose bytes are adjacent everywhere,
    if the layouts are joined."""
    most = _LONGEST_RUN if layouts[0].joined else 1
    first, numel = 0, 0
    before: tuple[Task, ...] | None = None
    at = 0
    for at, column in enumerate(zip(*(layout.tasks for layout in layouts), strict=True)):
        if before is not None and (at - first == most or not all(map(_continues, before, column))):
            yield Run(first, at - first, numel)
            first, numel = at, 0
        numel += column[0].numel
        before = column
    if before is not None:
        yield Run(first, at + 1 - first, numel)


def _continues(before: Task, task: Task) -> bool:
    return (
        before.kind == task.kind != "integer"
        and before.dtype is task.dtype
        and before.inputs == task.inputs
        and before.uniform == task.uniform
        and before.weights == task.weights
        and all(
            one.spec.dtype is other.spec.dtype
            and one.spec.dtype.bits >= 8
            and one.extent.file == other.extent.file
            and one.extent.strides is None
            and other.extent.strides is None
            and one.extent.offset + one.extent.nbytes == other.extent.offset
            for one, other in zip(before.sources, task.sources, strict=True)
        )
    )


def _widened(task: Task, numel: int) -> Task:
    sources = tuple(
        replace(
            source,
            spec=replace(source.spec, shape=(numel,)),
            extent=replace(source.extent, nbytes=source.spec.dtype.nbytes(numel)),
        )
        for source in task.sources
    )
    return replace(task, shape=(numel,), sources=sources)


def cut(layouts: Sequence[Layout], budget: Budget) -> Iterator[Piece]:
    """The pieces of layouts that differ in weights only, in order; none for empty tensors."""
    for run in runs(layouts):
        rows = run.rows(layouts)
        task = rows[0]
        most = budget.elements * budget.blocks // task.parts
        if all(row.kind == "copy" for row in rows):
            most = max(8, budget.chunk_bytes * 8 // task.dtype.bits // 8 * 8)
        elif task.kind == "integer" or any(row.kind == "pooled" for row in rows):
            # All inputs are held at once.
            most = max(1024, most // (4 * max(len(row.sources) for row in rows)))
        for start in range(0, task.numel, most):
            yield Piece(rows, start, min(most, task.numel - start), run, layouts[0].tasks)
