"""What a run may use, and the pieces that its tasks are cut into: pure values."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from swavg.errors import RequestError
from swavg.formats.base import Layout, Task
from swavg.plan import Policy, accumulator

DEFAULT_MEMORY = 32 << 20
"""Bytes for buffers: with the interpreter and NumPy the process stays under 96 MiB."""

_BLOCK = 1 << 18
_BLOCKS = 4
_SMALLEST_CHUNK = 1 << 12


@dataclass(frozen=True, slots=True)
class Resources:
    """What a run may use: ``device`` (cpu, cuda or cuda:N), ``threads`` (None: the processors of
    this process), ``memory`` in bytes for buffers (None: 32 MiB). None changes the result."""

    device: str = "cpu"
    threads: int | None = None
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """Worker threads and sizes, within a bound on memory.

    A kernel computes blocks of ``elements``, few enough for the processor's cache; a worker hands
    over chunks of ``blocks`` blocks, large enough that handing over costs nothing.
    """

    threads: int
    elements: int
    blocks: int
    input_size: int
    sum_size: int
    output_size: int
    gathers: bool
    rows: int = 1

    @property
    def memory(self) -> int:
        """Bytes of all buffers."""
        per_thread = self.input_size * (6 if self.gathers else 1)
        per_thread += (1 + self.rows) * self.sum_size
        buffers = (self.threads + 2) * self.blocks * self.output_size * self.rows
        return self.elements * (self.threads * per_thread + buffers)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk at most."""
        return self.elements * self.blocks * self.output_size

    @classmethod
    def within(
        cls, resources: Resources, layouts: Sequence[Layout], policy: Policy, rows: int = 1
    ) -> Budget:
        """The best budget for these tasks, computed for ``rows`` outputs at once; RequestError if
        the memory cannot do."""
        threads = resources.threads
        if threads is None:
            threads = (
                len(os.sched_getaffinity(0))
                if hasattr(os, "sched_getaffinity")
                else os.cpu_count() or 1
            )
        if threads < 1:
            raise RequestError("--threads is at least 1.")
        limit = DEFAULT_MEMORY if resources.memory is None else resources.memory
        input_size, sum_size, output_size, gathers = 1, 4, 1, False
        for layout in layouts:
            for task in layout.tasks:
                output_size = max(output_size, -(-task.dtype.part.bits // 8))
                for source in task.sources:
                    input_size = max(input_size, -(-source.spec.dtype.part.bits // 8))
                    gathers = gathers or source.extent.strides is not None
                if task.kind == "average" and accumulator(task, policy) == "float64":
                    sum_size = 8
        budget = cls(threads, _BLOCK, _BLOCKS, input_size, sum_size, output_size, gathers, rows)
        while budget.memory > limit and budget.blocks > 1:
            budget = replace(budget, blocks=budget.blocks // 2)
        while budget.memory > limit and budget.elements > 1 << 16:
            budget = replace(budget, elements=budget.elements // 2)
        while budget.memory > limit and budget.threads > 1:
            budget = replace(budget, threads=budget.threads - 1)
        while budget.memory > limit and budget.elements > _SMALLEST_CHUNK:
            budget = replace(budget, elements=budget.elements // 2)
        if budget.memory > limit:
            raise RequestError(
                f"--memory {limit:,} bytes is too little: at least {budget.memory:,} are needed."
            )
        return budget


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements ``[start, start + count)`` of a task, in one or more outputs (``rows``: the same
    tensor with other weights); ``members`` are the tensors that a joined task is made of, as
    (first element, name, shape)."""

    rows: tuple[Task, ...]
    start: int
    count: int
    members: tuple[tuple[int, str, tuple[int, ...]], ...]

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
            yield Piece(self.rows, start, count, self.members)

    def locate(self, index: int) -> tuple[str, tuple[int, ...]]:
        """Name and index of the ``index``-th element of the piece (counted from its start)."""
        absolute = self.start + index
        at = bisect.bisect_right([first for first, _, _ in self.members], absolute) - 1
        first, name, shape = self.members[at]
        rest = absolute - first
        position = []
        for extent in reversed(shape):
            position.append(rest % extent)
            rest //= extent
        return name, tuple(reversed(position))


def union(rows: Sequence[Task]) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """The inputs that any of the rows reads, in order, and their tensors."""
    if len(rows) == 1:
        return rows[0].inputs, rows[0].sources
    found = {
        index: source for row in rows for index, source in zip(row.inputs, row.sources, strict=True)
    }
    inputs = tuple(sorted(found))
    return inputs, tuple(found[index] for index in inputs)


def joined(
    columns: Sequence[tuple[Task, ...]], most: int = 4096
) -> Iterator[tuple[tuple[Task, ...], tuple[Any, ...]]]:
    """Tasks (one per output) with their members; successive ones whose bytes are adjacent
    everywhere become one."""
    run: list[tuple[Task, ...]] = []
    for column in columns:
        if run and (len(run) == most or not all(map(_continues, run[-1], column))):
            yield _join(run)
            run = []
        run.append(column)
    if run:
        yield _join(run)


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


def _join(run: Sequence[tuple[Task, ...]]) -> tuple[tuple[Task, ...], tuple[Any, ...]]:
    members, start = [], 0
    for column in run:
        members.append((start, column[0].name, column[0].shape))
        start += column[0].numel
    if len(run) == 1:
        return run[0], tuple(members)
    return tuple(_widened(first, start) for first in run[0]), tuple(members)


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
    columns = list(zip(*(layout.tasks for layout in layouts), strict=True))
    for rows, members in joined(columns, 4096 if layouts[0].joined else 1):
        task = rows[0]
        most = budget.elements * budget.blocks // task.parts
        if all(row.kind == "copy" for row in rows):
            most = max(8, budget.chunk_bytes * 8 // task.dtype.bits // 8 * 8)
        elif task.kind == "integer":
            # All inputs are held at once.
            most = max(1024, most // (4 * len(task.sources)))
        for start in range(0, task.numel, most):
            yield Piece(rows, start, min(most, task.numel - start), members)
