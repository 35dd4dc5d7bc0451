"""tensor -> chunk -> bytes: worker threads compute chunks, which come out in order."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from swavg.dtypes import Accumulator
from swavg.errors import MismatchError, NumericsError
from swavg.formats.base import Checkpoint, FilePool, Layout, Task
from swavg.pieces import Budget, Piece, cut, union
from swavg.plan import Policy, accumulator

if TYPE_CHECKING:
    from swavg.geometry import Geometry
    from swavg.kernels.base import Arithmetic, Kernel


@dataclass(slots=True)
class Tally:
    """What a run has done so far, in bytes, and which integer tensors differed."""

    read: int = 0
    written: int = 0
    differing_integers: dict[str, None] = field(default_factory=dict)
    nonfinite: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Found:
    """What a worker noticed about a piece: a tensor whose integers differ or whose floats are not
    finite (and are let through), and sums for the geometry."""

    odd: str | None = None
    geometry: Any = None


class Stream:
    """Computes layouts chunk by chunk. A context manager: it owns threads and open files."""

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        shown: Sequence[str],
        policy: Policy,
        budget: Budget,
        device: str = "cpu",
        geometry: Geometry | None = None,
    ) -> None:
        self._checkpoints = checkpoints
        self._shown = shown
        self._policy = policy
        self._budget = budget
        self._device = device
        self._geometry = geometry
        self._pool = FilePool()
        self._local = threading.local()
        self._kernels: list[Kernel] = []
        self._repairing = threading.Lock()
        self._workers = ThreadPoolExecutor(budget.threads, thread_name_prefix="swavg")
        size = budget.chunk_bytes
        self._free = [
            tuple(_buffer(size) for _ in range(budget.rows)) for _ in range(budget.threads + 2)
        ]
        self.tally = Tally()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.shutdown(wait=True, cancel_futures=True)
        for kernel in self._kernels:
            kernel.close()
        self._free = []
        self._pool.close()

    def chunks(self, layouts: Sequence[Layout]) -> Iterator[tuple[memoryview, ...]]:
        """The bytes of the layouts' tasks in order, one buffer per layout, all of one read.

        The layouts differ in weights only. Buffers are valid until the next are asked for. Raises
        InputError, NumericsError or MismatchError as they come up.
        """
        pieces = cut(layouts, self._budget)
        pending: deque[tuple[Future[_Found], Piece, tuple[memoryview, ...]]] = deque()
        try:
            while True:
                while self._free:
                    piece = next(pieces, None)
                    if piece is None:
                        break
                    buffers = self._free.pop()
                    views = _views(buffers, piece)
                    pending.append(
                        (self._workers.submit(self._compute, piece, views), piece, buffers)
                    )
                if not pending:
                    return
                future, piece, buffers = pending[0]
                self._count(piece, future.result())
                yield _views(buffers, piece)
                pending.popleft()
                self._free.append(buffers)
        finally:
            for future, _, _ in pending:
                future.cancel()
            wait([future for future, _, _ in pending if not future.cancelled()])
            self._free += [buffers for _, _, buffers in pending]

    def _count(self, piece: Piece, found: _Found) -> None:
        self.tally.read += piece.nbytes_read
        self.tally.written += piece.nbytes * len(piece.rows)
        if found.odd is not None:
            integer = piece.task.kind == "integer"
            noted = self.tally.differing_integers if integer else self.tally.nonfinite
            noted[found.odd] = None
        if self._geometry is not None and found.geometry is not None:
            self._geometry.add(found.geometry)

    def _compute(self, piece: Piece, outs: tuple[memoryview, ...]) -> _Found:
        if len(piece.rows) == 1:
            return self._one(piece, piece.task, outs[0])
        arithmetics = [self._arithmetic(row) for row in piece.rows if row.kind == "average"]
        together = (
            len(arithmetics) == len(piece.rows)
            and len({arithmetic.accumulator for arithmetic in arithmetics}) == 1
            # Each input is read once, in order: one that is given twice goes row by row.
            and all(
                before < after
                for row in piece.rows
                for before, after in zip(row.inputs, row.inputs[1:], strict=False)
            )
        )
        if together and hasattr(self._kernel(), "weighted_sums"):
            return self._together(piece, arithmetics, outs)
        found = _Found()
        for row, out in zip(piece.rows, outs, strict=True):
            one = self._one(piece, row, out)
            found = one if one.odd is not None else found
        return found

    def _one(self, piece: Piece, task: Task, out: memoryview) -> _Found:
        """Fill ``out`` with the piece of ``task``."""
        single = Piece((task,), piece.start, piece.count, piece.members)
        if task.kind == "copy":
            self._reader(single)(0, out)
            return _Found()
        if task.kind == "integer":
            return _Found(self._integers(single, out))
        odd = None
        arithmetic = self._arithmetic(task)
        for block in single.blocks(self._budget.elements // task.parts):
            at = task.dtype.nbytes(block.start - piece.start)
            odd = self._floats(block, arithmetic, out[at : at + block.nbytes]) or odd
        geometry = None
        if self._geometry is not None:
            geometry = self._geometry.sample(single, self._reader(single), out)
        return _Found(odd, geometry)

    def _together(
        self, piece: Piece, arithmetics: Sequence[Arithmetic], outs: tuple[memoryview, ...]
    ) -> _Found:
        """All outputs from one read of each input."""
        inputs, sources = union(piece.rows)
        positions = [tuple(map(inputs.index, row.inputs)) for row in piece.rows]
        dtypes = tuple(source.spec.dtype.part for source in sources)
        odd = None
        for block in piece.blocks(self._budget.elements // piece.task.parts):
            at = piece.task.dtype.nbytes(block.start - piece.start)
            parts = [out[at : at + block.nbytes] for out in outs]
            read = self._reader_of(block, inputs, sources)
            count = block.count * piece.task.parts
            kernel: Any = self._kernel()
            finite = kernel.weighted_sums(arithmetics, positions, dtypes, count, read, parts)
            for row, arithmetic, part, good in zip(
                piece.rows, arithmetics, parts, finite, strict=True
            ):
                if not good:
                    single = Piece((row,), block.start, block.count, block.members)
                    odd = self._floats(single, arithmetic, part) or odd
        return _Found(odd)

    def _reader(self, piece: Piece) -> Callable[[int, memoryview], None]:
        return self._reader_of(piece, piece.task.inputs, piece.task.sources)

    def _reader_of(
        self, piece: Piece, inputs: Sequence[int], sources: Sequence[Any]
    ) -> Callable[[int, memoryview], None]:
        def read(index: int, target: memoryview) -> None:
            source = sources[index]
            file = self._checkpoints[inputs[index]].files[source.extent.file]
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

                kernel = CpuKernel(budget.elements, budget.input_size, budget.sum_size, budget.rows)
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


def _buffer(size: int) -> memoryview:
    import numpy as np

    # Not cleared: pages that are never used take no memory and no time.
    return np.empty(size, np.uint8).data


def _views(buffers: Sequence[memoryview], piece: Piece) -> tuple[memoryview, ...]:
    # Fewer rows than buffers where a run has outputs of several kinds.
    return tuple(buffer[: piece.nbytes] for buffer in buffers[: len(piece.rows)])


def _spelled(value: float) -> str:
    return "NaN" if math.isnan(value) else ("Inf" if value > 0 else "-Inf")
