"""One piece of the output: read, multiply, add, round; the same in a thread and in a process."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from swavg.dtypes import Accumulator
from swavg.errors import MismatchError, NumericsError
from swavg.formats.base import Checkpoint, Layout, Task, Tensor
from swavg.formats.files import FilePool
from swavg.pieces import Budget, Piece, union
from swavg.plan import accumulator
from swavg.policy import Policy
from swavg.pooling import mean_of

if TYPE_CHECKING:
    from swavg.geometry import Geometry
    from swavg.kernels.base import Arithmetic, Kernel
    from swavg.kernels.repair import Trouble


_REPAIRED = 1 << 14
"""Elements that are repaired at once: it takes many arrays in float64."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was noticed about a piece: a tensor whose integers differ or whose floats are not
    finite (and are let through), and sums for the geometry."""

    odd: str | None = None
    geometry: Any = None


class Computer:
    """Computes pieces, in any number of threads. Owns open files and a kernel per thread."""

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

    def load(self, rounds: Iterable[Sequence[Layout]]) -> None:
        """Import what computing the layouts needs: forked processes then share it."""
        import swavg.kernels.cpu  # noqa: F401 - what it brings along is what counts

        dtypes = {
            dtype.part.name: dtype.part
            for layouts in rounds
            for layout in layouts
            for task in layout.tasks
            for dtype in (task.dtype, *(source.spec.dtype for source in task.sources))
        }
        for dtype in dtypes.values():
            dtype.numpy()

    def close(self) -> None:
        """Give files and buffers back; no thread computes any more."""
        for kernel in self._kernels:
            kernel.close()
        self._pool.close()

    def compute(self, piece: Piece, outs: tuple[memoryview, ...]) -> Found:
        """Fill ``outs``, a buffer per row, with the piece."""
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
        found = Found()
        for row, out in zip(piece.rows, outs, strict=True):
            one = self._one(piece, row, out)
            found = one if one.odd is not None else found
        return found

    def _one(self, piece: Piece, task: Task, out: memoryview) -> Found:
        """Fill ``out`` with the piece of ``task``."""
        single = replace(piece, rows=(task,))
        if task.kind == "copy":
            self._reader(single)(0, out)
            return Found()
        if task.kind == "integer":
            return Found(self._integers(single, out))
        if task.kind == "pooled":
            return Found(self._pooled(single, out))
        odd = None
        arithmetic, read = self._arithmetic(task), self._reader(single)
        most = self._budget.elements // task.parts
        for start in range(piece.start, piece.start + piece.count, most):
            count = min(most, piece.start + piece.count - start)
            at = task.dtype.nbytes(start - piece.start)
            part = out[at : at + task.dtype.nbytes(count)]
            read.go_to(start, count)
            if not self._kernel().weighted_sum(arithmetic, count * task.parts, read, part):
                block = replace(single, start=start, count=count)
                odd = self._repaired(block, arithmetic, part) or odd
        geometry = None
        if self._geometry is not None:
            geometry = self._geometry.sample(single, self._reader(single), out)
        return Found(odd, geometry)

    def _together(
        self, piece: Piece, arithmetics: Sequence[Arithmetic], outs: tuple[memoryview, ...]
    ) -> Found:
        """All outputs from one read of each input."""
        inputs, sources = union(piece.rows)
        positions = [tuple(map(inputs.index, row.inputs)) for row in piece.rows]
        dtypes = tuple(source.spec.dtype.part for source in sources)
        odd = None
        read = _Reader(self._pool, self._checkpoints, inputs, sources)
        for block in piece.blocks(self._budget.elements // piece.task.parts):
            at = piece.task.dtype.nbytes(block.start - piece.start)
            parts = [out[at : at + block.nbytes] for out in outs]
            read.go_to(block.start, block.count)
            count = block.count * piece.task.parts
            kernel: Any = self._kernel()
            finite = kernel.weighted_sums(arithmetics, positions, dtypes, count, read, parts)
            for row, arithmetic, part, good in zip(
                piece.rows, arithmetics, parts, finite, strict=True
            ):
                if not good:
                    single = replace(block, rows=(row,))
                    odd = self._repaired(single, arithmetic, part) or odd
        return Found(odd)

    def _reader(self, piece: Piece) -> _Reader:
        task = piece.task
        read = _Reader(self._pool, self._checkpoints, task.inputs, task.sources)
        read.go_to(piece.start, piece.count)
        return read

    def _repaired(self, piece: Piece, arithmetic: Arithmetic, out: memoryview) -> str | None:
        """Compute what the kernel found not to be finite; the name of a tensor that stays so."""
        from swavg.kernels.repair import repair

        odd: str | None = None
        for block in piece.blocks(_REPAIRED // piece.task.parts):
            at = piece.task.dtype.nbytes(block.start - piece.start)
            part = out[at : at + block.nbytes]
            # One at a time: this path takes more memory, and is rare.
            with self._repairing:
                trouble = repair(
                    arithmetic, block.count * piece.task.parts, self._reader(block), part
                )
            if trouble is not None:
                odd = self._refused(block, trouble) or odd
        return odd

    def _pooled(self, piece: Piece, out: memoryview) -> str | None:
        from swavg.kernels.pooling import pool

        trouble = pool(self._arithmetic(piece.task), piece.count, self._reader(piece), out)
        if trouble is not None and not trouble.inputs and trouble.value < 0:
            name, position = piece.locate(trouble.index)
            raise NumericsError(
                f"'{name}' at {list(position)}: the variance is {trouble.value:.6g}, as an input"
                " has a negative one.",
                hint="Leave --pool-batch-norm out, or recompute the statistics with swavg bn.",
            )
        return None if trouble is None else self._refused(piece, trouble)

    def _refused(self, piece: Piece, trouble: Trouble) -> str | None:
        """The name of a tensor that may stay as it is; NumericsError for any other."""
        task = piece.task
        name, position = piece.locate(trouble.index // task.parts)
        if trouble.kept or self._policy.allow_nonfinite:
            return name
        place = f"'{name}'" + (f" at {list(position)}" if position else "")
        if trouble.inputs:
            first, value = trouble.inputs[0]
            if task.kind == "pooled" and first >= len(task.sources) // 2:
                place = place.replace(name, mean_of(name))
            more = len(trouble.inputs) - 1
            others = f" (and {more} more input{'s' * (more > 1)})" if more else ""
            raise NumericsError(
                f"{self._shown[task.inputs[first]]}: {place} is {spelled(value)}{others}.",
                hint="Leave that checkpoint out, or use --allow-nonfinite to let it through.",
            )
        wider = {"float32": "float64", "float64": None}.get(task.dtype.part.name, "float32")
        raise NumericsError(
            f"{place}: the sum {trouble.value:.6g} overflows {task.dtype}.",
            hint="Use "
            + ("" if wider is None else f"--dtype {wider}, or ")
            + "--allow-nonfinite to let it through.",
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


class _Reader:
    """Reads elements of a task's inputs: those that ``go_to`` named last."""

    def __init__(
        self,
        pool: FilePool,
        checkpoints: Sequence[Checkpoint],
        inputs: Sequence[int],
        sources: Sequence[Tensor],
    ) -> None:
        self._pool = pool
        self._sources = [
            (checkpoints[index].files[source.extent.file], source, source.spec.dtype.bits)
            for index, source in zip(inputs, sources, strict=True)
        ]
        self._start = self._count = 0

    def go_to(self, start: int, count: int) -> None:
        self._start, self._count = start, count

    def __call__(self, index: int, target: memoryview) -> None:
        file, source, bits = self._sources[index]
        if source.extent.strides is None:
            offset = source.extent.offset + self._start * bits // 8
            self._pool.read_into(file, offset, target)
        else:
            from swavg.formats.read import gather

            stop = self._start + self._count
            gather(self._pool, file, source, self._start, stop, target)


def spelled(value: float) -> str:
    """A value that is not finite, in words."""
    return "NaN" if math.isnan(value) else ("Inf" if value > 0 else "-Inf")
