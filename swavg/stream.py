"""tensor -> chunk -> bytes: worker threads compute chunks, which come out in order."""

from __future__ import annotations

import bisect
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from swavg.dtypes import Accumulator
from swavg.errors import MismatchError, NumericsError, RequestError
from swavg.formats.base import Checkpoint, FilePool, Layout, Task
from swavg.plan import Policy, accumulator

if TYPE_CHECKING:
    from swavg.kernels.base import Arithmetic, Kernel

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

    @property
    def memory(self) -> int:
        """Bytes of all buffers."""
        per_thread = self.input_size * (6 if self.gathers else 1) + 2 * self.sum_size
        buffers = (self.threads + 2) * self.blocks * self.output_size
        return self.elements * (self.threads * per_thread + buffers)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk at most."""
        return self.elements * self.blocks * self.output_size

    @classmethod
    def within(cls, resources: Resources, layouts: Sequence[Layout], policy: Policy) -> Budget:
        """The best budget for these tasks; RequestError if the memory cannot do."""
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
        budget = cls(threads, _BLOCK, _BLOCKS, input_size, sum_size, output_size, gathers)
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
    """Elements ``[start, start + count)`` of a task; ``members`` are the tensors that a joined task
    is made of, as (first element, name, shape)."""

    task: Task
    start: int
    count: int
    members: tuple[tuple[int, str, tuple[int, ...]], ...]

    @property
    def nbytes(self) -> int:
        return self.task.dtype.nbytes(self.count)

    @property
    def nbytes_read(self) -> int:
        return sum(source.spec.dtype.nbytes(self.count) for source in self.task.sources)

    def blocks(self, most: int) -> Iterator[Piece]:
        """The piece cut into blocks of at most ``most`` elements."""
        for start in range(self.start, self.start + self.count, most):
            count = min(most, self.start + self.count - start)
            yield Piece(self.task, start, count, self.members)

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


def joined(tasks: Sequence[Task], most: int = 4096) -> Iterator[tuple[Task, tuple[Any, ...]]]:
    """Tasks with their members; successive ones whose bytes are adjacent everywhere become one."""
    run: list[Task] = []
    for task in tasks:
        if run and (len(run) == most or not _continues(run[-1], task)):
            yield _join(run)
            run = []
        run.append(task)
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


def _join(run: Sequence[Task]) -> tuple[Task, tuple[Any, ...]]:
    first, members, start = run[0], [], 0
    for task in run:
        members.append((start, task.name, task.shape))
        start += task.numel
    if len(run) == 1:
        return first, tuple(members)
    sources = tuple(
        replace(
            source,
            spec=replace(source.spec, shape=(start,)),
            extent=replace(source.extent, nbytes=source.spec.dtype.nbytes(start)),
        )
        for source in first.sources
    )
    return replace(first, shape=(start,), sources=sources), tuple(members)


def cut(layout: Layout, budget: Budget) -> Iterator[Piece]:
    """The pieces of a layout, in order; none for tensors without elements."""
    tasks = joined(layout.tasks, 4096 if layout.joined else 1)
    for task, members in tasks:
        most = budget.elements * budget.blocks // task.parts
        if task.kind == "copy":
            most = max(8, budget.chunk_bytes * 8 // task.dtype.bits // 8 * 8)
        elif task.kind == "integer":
            # All inputs are held at once.
            most = max(1024, most // (4 * len(task.sources)))
        for start in range(0, task.numel, most):
            yield Piece(task, start, min(most, task.numel - start), members)


@dataclass(slots=True)
class Tally:
    """What a run has done so far, in bytes, and which integer tensors differed."""

    read: int = 0
    written: int = 0
    differing_integers: dict[str, None] = field(default_factory=dict)
    nonfinite: dict[str, None] = field(default_factory=dict)


class Stream:
    """Computes layouts chunk by chunk. A context manager: it owns threads and open files."""

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        shown: Sequence[str],
        policy: Policy,
        budget: Budget,
        device: str = "cpu",
    ) -> None:
        self._checkpoints = checkpoints
        self._shown = shown
        self._policy = policy
        self._budget = budget
        self._device = device
        self._pool = FilePool()
        self._local = threading.local()
        self._kernels: list[Kernel] = []
        self._repairing = threading.Lock()
        self._workers = ThreadPoolExecutor(budget.threads, thread_name_prefix="swavg")
        size = budget.chunk_bytes
        self._free = [bytearray(size) for _ in range(budget.threads + 2)]
        self.tally = Tally()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.shutdown(wait=True, cancel_futures=True)
        for kernel in self._kernels:
            kernel.close()
        self._free = []
        self._pool.close()

    def chunks(self, layout: Layout) -> Iterator[memoryview]:
        """The bytes of the layout's tasks in order. A chunk is valid until the next is asked for.

        Raises InputError, NumericsError or MismatchError as they come up.
        """
        pieces = cut(layout, self._budget)
        pending: deque[tuple[Future[str | None], Piece, bytearray]] = deque()
        try:
            while True:
                while self._free:
                    piece = next(pieces, None)
                    if piece is None:
                        break
                    buffer = self._free.pop()
                    view = memoryview(buffer)[: piece.nbytes]
                    pending.append(
                        (self._workers.submit(self._compute, piece, view), piece, buffer)
                    )
                if not pending:
                    return
                future, piece, buffer = pending[0]
                self._count(piece, future.result())
                yield memoryview(buffer)[: piece.nbytes]
                pending.popleft()
                self._free.append(buffer)
        finally:
            for future, _, _ in pending:
                future.cancel()
            wait([future for future, _, _ in pending if not future.cancelled()])
            self._free += [buffer for _, _, buffer in pending]

    def _count(self, piece: Piece, odd: str | None) -> None:
        self.tally.read += piece.nbytes_read
        self.tally.written += piece.nbytes
        if odd is not None:
            integer = piece.task.kind == "integer"
            noted = self.tally.differing_integers if integer else self.tally.nonfinite
            noted[odd] = None

    def _compute(self, piece: Piece, out: memoryview) -> str | None:
        """Fill ``out``; the name of a tensor whose integers differ or whose floats are not finite
        (and are let through), None if there is nothing to say."""
        task = piece.task
        if task.kind == "copy":
            self._reader(piece)(0, out)
            return None
        if task.kind == "integer":
            return self._integers(piece, out)
        odd = None
        arithmetic = self._arithmetic(task)
        for block in piece.blocks(self._budget.elements // task.parts):
            at = task.dtype.nbytes(block.start - piece.start)
            odd = self._floats(block, arithmetic, out[at : at + block.nbytes]) or odd
        return odd

    def _reader(self, piece: Piece) -> Callable[[int, memoryview], None]:
        task = piece.task

        def read(index: int, target: memoryview) -> None:
            source = task.sources[index]
            file = self._checkpoints[task.inputs[index]].files[source.extent.file]
            if source.extent.strides is None:
                offset = source.extent.offset + source.spec.dtype.nbytes(piece.start)
                self._pool.read_into(file, offset, target)
            else:
                from swavg.formats.read import gather

                gather(self._pool, file, source, piece.start, piece.start + piece.count, target)

        return read

    def _floats(self, piece: Piece, arithmetic: Arithmetic, out: memoryview) -> str | None:
        task, read = piece.task, self._reader(piece)
        count = piece.count * task.parts
        if self._kernel().weighted_sum(arithmetic, count, read, out):
            return None
        from swavg.kernels.repair import repair

        # One at a time: this path takes more memory, and is rare.
        with self._repairing:
            trouble = repair(arithmetic, count, read, out)
        if trouble is None:
            return None
        name, position = piece.locate(trouble.index // task.parts)
        if self._policy.allow_nonfinite:
            return name
        place = f"'{name}'" + (f" at {list(position)}" if position else "")
        if trouble.inputs:
            first, value = trouble.inputs[0]
            more = len(trouble.inputs) - 1
            others = f" (and {more} more input{'s' * (more > 1)})" if more else ""
            raise NumericsError(
                f"{self._shown[task.inputs[first]]}: {place} is {_spelled(value)}{others}.",
                hint="Leave that checkpoint out, or use --allow-nonfinite to let it through.",
            )
        wider = "float64" if task.dtype.name == "float32" else "float32"
        raise NumericsError(
            f"{place}: the sum {trouble.value:.6g} overflows {task.dtype}.",
            hint=f"Use --dtype {wider}, or --allow-nonfinite to let it through.",
        )

    def _arithmetic(self, task: Task) -> Arithmetic:
        from swavg.kernels.base import Arithmetic

        kind: Accumulator = accumulator(task, self._policy)
        inputs = tuple(source.spec.dtype.part for source in task.sources)
        return Arithmetic(inputs, task.weights, task.uniform, kind, task.dtype.part)

    def _kernel(self) -> Kernel:
        kernel: Kernel | None = getattr(self._local, "kernel", None)
        if kernel is None:
            budget = self._budget
            if self._device == "cpu":
                from swavg.kernels.cpu import CpuKernel

                kernel = CpuKernel(budget.elements, budget.input_size, budget.sum_size)
            else:
                from swavg.kernels.torch import TorchKernel

                kernel = TorchKernel(budget.elements, budget.input_size, self._torch_device)
            self._local.kernel = kernel
            self._kernels.append(kernel)
        return kernel

    @property
    def _torch_device(self) -> str:
        # "torch" is the torch kernel on the processor: for tests, not offered to users.
        return "cpu" if self._device == "torch" else self._device

    def _integers(self, piece: Piece, out: memoryview) -> str | None:
        import numpy as np

        from swavg.kernels.integers import combine

        task, rule, read = piece.task, self._policy.integers, self._reader(piece)
        arrays = []
        for index in range(len(task.sources)):
            raw = bytearray(piece.nbytes)
            read(index, memoryview(raw))
            arrays.append(np.frombuffer(raw, task.dtype.numpy()))
        if all(np.array_equal(arrays[0], array) for array in arrays[1:]):
            out[:] = arrays[0].view(np.uint8).data
            return None
        name, _ = piece.locate(0)
        if rule == "error":
            raise MismatchError(
                f"'{name}' ({task.dtype}) differs between the inputs.",
                hint="--integers last, first, max or mean decides what becomes of it.",
            )
        try:
            result = combine(rule, arrays, task.weights, task.uniform)
        except OverflowError as error:
            raise NumericsError(f"'{name}': the mean {error}.") from None
        out[:] = np.ascontiguousarray(result).view(np.uint8).data
        return name


def _spelled(value: float) -> str:
    return "NaN" if math.isnan(value) else ("Inf" if value > 0 else "-Inf")
