"""Making one task's bytes: read, multiply, add, round, and write them where they belong."""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from swavg.engine.ahead import ranges_of
from swavg.engine.batches import Batch, Batches, BatchReader, Inputs, position_of
from swavg.engine.checksums import checked_members
from swavg.engine.differing import also_differ
from swavg.engine.resources import Sizes
from swavg.engine.results import Checksum, Sinks, TaskResult, Written
from swavg.errors import MismatchError, NumericsError
from swavg.planning.findings import UNMASK
from swavg.planning.plan import Plan
from swavg.storage.crc import crc_function
from swavg.storage.paths import expect

if TYPE_CHECKING:
    from swavg.engine.distances import Sampler
    from swavg.engine.kernels.base import Arithmetic, Kernel
    from swavg.engine.kernels.repair import Trouble

_COMBINED = 1 << 15
"""Elements of all inputs whose mean is taken at once."""
_REPAIRED = 1 << 12
"""Elements that are repaired at once: it takes many arrays in float64."""


def run_task(plan: Plan, number: int, tools: Tools, sinks: Sinks) -> TaskResult:
    """Make a task's bytes and write them. Raises InputError, NumericsError, MismatchError, or
    OutputError."""
    task, result = plan.task(number), TaskResult(number)
    if plan.remote:
        tools.expect(number)
    for batch in tools.batches.of(task):
        outs = tools.compute(batch, result)
        for term, out in zip(batch.manner.operation.terms, outs, strict=True):
            for file, offset, data in _pieces(plan, term.row, batch, out, result):
                sinks[term.row][file].pwrite(offset, data)
                result.written += len(data)
                if tools.journaled:
                    result.record(Written(term.row, file, offset, len(data), zlib.crc32(data)))
    return result


def _pieces(
    plan: Plan, row: int, batch: Batch, out: memoryview, result: TaskResult
) -> Iterator[tuple[int, int, memoryview]]:
    """What of a batch goes where in a row's files, what is adjacent there in one piece: number of
    the file, offset, bytes."""
    output, dtype = plan.outputs[row], batch.manner.operation.dtype
    file = offset = begun = at = 0
    for span in batch.spans:
        element = span.start
        while element < span.stop:
            place = output.place(span.entry, element)
            stop = span.stop if place.stop is None else min(span.stop, place.stop)
            start, size = dtype.nbytes(element - place.start), dtype.nbytes(stop - element)
            if (kind := output.files[place.file].layout.checksum) is not None:
                crc = crc_function(kind)(out[at : at + size])
                result.checksums.append(Checksum(row, place.file, place.offset, start, size, crc))
            if (place.file, place.offset + start) != (file, offset + at - begun):
                if at > begun:
                    yield file, offset, out[begun:at]
                file, offset, begun = place.file, place.offset + start, at
            at += size
            element = stop
    if at > begun:
        yield file, offset, out[begun:at]


class Tools:
    """What a worker computes with: open files, a kernel, buffers. A context manager."""

    def __init__(
        self,
        plan: Plan,
        sizes: Sizes,
        device: str = "cpu",
        positions: Sequence[int] | None = None,
        *,
        check_crc: bool = False,
        journaled: bool = False,
    ) -> None:
        """``positions`` are those of :func:`swavg.engine.distances.positions_of`, if distances are
        wanted; ``check_crc``: results tell the checksums of all that was read; ``journaled``: of
        all that was written."""
        self.plan, self.journaled = plan, journaled
        needs = sizes.needs
        nbytes = sizes.elements * needs.output_size
        self.batches = Batches(plan, sizes.elements, nbytes)
        self._sampler = None if positions is None else _sampler(plan, positions)
        self._checked = checked_members(plan, everything=check_crc)
        self._outs = [memoryview(bytearray(nbytes)) for _ in range(needs.rows)]
        # What is fetched of objects is known piece by piece.
        self._inputs = Inputs(plan, 0 if plan.remote else 2 * nbytes, sizes.room)
        self._kernel: Kernel
        self._arithmetics: dict[int, Arithmetic] = {}
        if device == "cpu":
            from swavg.engine.kernels.cpu import CpuKernel

            self._kernel = CpuKernel(sizes.elements, needs.input_size, needs.sum_size, needs.rows)
        else:
            from swavg.engine.kernels.torch import TorchKernel

            # "torch" is the torch kernel on the processor: for tests, not offered to users.
            name = "cpu" if device == "torch" else device
            self._kernel = TorchKernel(
                sizes.elements, needs.input_size, needs.sum_size, needs.rows, name
            )

    def go_on_with(self, plan: Plan) -> None:
        """Take another plan, which differs from the one before in its weights alone."""
        self.plan = plan
        self.batches = Batches(plan, self.batches.elements, self.batches.nbytes)
        self._arithmetics.clear()
        self._inputs.plan = plan

    def __enter__(self) -> Tools:
        return self

    def __exit__(self, *_: object) -> None:
        self._kernel.close()
        self._inputs.pool.close()

    def expect(self, number: int) -> None:
        """Fetch what a task reads of objects in a store."""
        expect(self._inputs.pool, ranges_of(self.plan, number))

    def compute(self, batch: Batch, result: TaskResult) -> Sequence[memoryview]:
        """The bytes of a batch, for each of its operation's terms: in buffers of this worker."""
        operation = batch.manner.operation
        outs = [out[: batch.nbytes] for out in self._outs[: len(operation.terms)]]
        read = BatchReader(self._inputs, batch, self._checked, result.reads)
        result.read += sum(dtype.nbytes(batch.count) for dtype in batch.manner.inputs)
        if operation.op == "average":
            self._average(batch, read, outs, result)
        elif operation.op == "integer":
            self._integers(batch, read, outs[0], result)
            return [outs[0]] * len(outs)
        else:
            read(0, outs[0])
            return [outs[0]] * len(outs)
        return outs

    def _average(
        self, batch: Batch, read: BatchReader, outs: Sequence[memoryview], result: TaskResult
    ) -> None:
        arithmetic = self._arithmetic(batch)
        count = batch.count * batch.manner.parts
        finite = self._kernel.weighted_sums(arithmetic, count, read, outs)
        if not all(finite):
            for place, good in enumerate(finite):
                if not good:
                    self._repair(batch, read, place, outs[place], result)
        if self._sampler is not None:
            result.distances += self._sampler.sample(batch, read, outs)

    def _arithmetic(self, batch: Batch) -> Arithmetic:
        manner = batch.manner
        found = self._arithmetics.get(id(manner))
        if found is None:
            from swavg.engine.kernels.base import Arithmetic, Terms

            operation = manner.operation
            terms = tuple(Terms(t.positions, t.weights, t.uniform) for t in operation.terms)
            inputs = tuple(dtype.part for dtype in manner.inputs)
            found = Arithmetic(inputs, terms, operation.accumulate, operation.dtype.part)
            self._arithmetics[id(manner)] = found
        return found

    def _repair(
        self, batch: Batch, read: BatchReader, place: int, out: memoryview, result: TaskResult
    ) -> None:
        """Compute what the kernel found not to be finite."""
        from swavg.engine.kernels.repair import repair

        arithmetic, parts = self._arithmetic(batch), batch.manner.parts
        dtype = batch.manner.operation.dtype
        for start, block in batch.blocks(_REPAIRED // parts):
            at = dtype.nbytes(start)
            part = out[at : at + block.nbytes]
            # One at a time: this path takes more memory, and is rare.
            with _REPAIRING:
                trouble = repair(
                    arithmetic, arithmetic.rows[place], block.count * parts, read.of(block), part
                )
            if trouble is not None:
                entry, index = block.locate(trouble.index // parts)
                row = batch.manner.operation.terms[place].row
                self._check(row, entry, index, trouble, batch)
                result.nonfinite.add((row, entry))

    def _check(self, row: int, entry: int, index: int, trouble: Trouble, batch: Batch) -> None:
        """NumericsError unless a value that is not finite may stay."""
        if trouble.kept or self.plan.policy.allow_nonfinite:
            return
        shape = self.plan.entries.forms[self.plan.entries.form[entry]][0]
        position = self._position(entry, index) if shape else []
        place = f"'{self.plan.name(row, entry)}'" + (f" at {position}" if position else "")
        if trouble.inputs:
            first, value = trouble.inputs[0]
            more = len(trouble.inputs) - 1
            others = f" (and {more} more input{'s' * (more > 1)})" if more else ""
            shown = self.plan.shown[batch.manner.operation.members[first]]
            raise NumericsError(
                f"{shown}: {place} is {spelled(value)}{others}.",
                hint="Leave that checkpoint out, or use allow_nonfinite=True to let it through.",
            )
        dtype = batch.manner.operation.dtype
        wider = {"float32": "float64", "float64": None}.get(dtype.part.name, "float32")
        raise NumericsError(
            f"{place}: the sum {trouble.value:.6g} overflows {dtype}.",
            hint="Use "
            + ("" if wider is None else f"dtype={wider}, or ")
            + "allow_nonfinite=True to let it through.",
        )

    def _position(self, entry: int, index: int) -> list[int]:
        """The index per dimension of an entry's element, as the tensor's own dimensions go."""
        shape, order = self.plan.entries.forms[self.plan.entries.form[entry]]
        position = position_of(index, shape)
        if order is None:
            return position
        return [position[order.index(axis)] for axis in range(len(order))]

    def _integers(
        self, batch: Batch, read: BatchReader, out: memoryview, result: TaskResult
    ) -> None:
        import numpy as np

        operation, rule = batch.manner.operation, self.plan.policy.integers
        raws = [bytearray(batch.nbytes) for _ in operation.members]
        for index, raw in enumerate(raws):
            read(index, memoryview(raw))
        if all(raw == raws[0] for raw in raws[1:]):
            out[:] = raws[0]
            return
        entry = batch.spans[0].entry
        name = self.plan.name(operation.terms[0].row, entry)
        if operation.dtype.bits < 8:
            raise MismatchError(
                f"'{name}' ({operation.dtype}) differs between the inputs: it holds codes, whose"
                " scales are in other tensors, so that their sum means nothing.",
                hint="Average the checkpoints before they are quantized.",
            )
        if operation.dtype.floating:
            raise MismatchError(
                f"'{name}' differs between the inputs: it is a pruning mask, and the average of"
                " masks is none.",
                hint=UNMASK,
            )
        decides = "integers=last, first, max or mean decides what becomes of it."
        row = operation.terms[0].row
        if rule == "error":
            more = also_differ(self.plan, row, entry, self._inputs.pool, counters=True)
            raise MismatchError(
                f"'{name}' ({operation.dtype}) differs between the inputs.{more}", hint=decides
            )
        shape, _ = self.plan.entries.forms[self.plan.entries.form[entry]]
        if rule == "auto" and math.prod(shape) > 1:
            more = also_differ(self.plan, row, entry, self._inputs.pool, counters=False)
            raise MismatchError(
                f"'{name}' ({operation.dtype} {list(shape)}) differs between the inputs, and is no"
                f" counter.{more}",
                hint="If it holds codes of quantised weights, average the originals and quantise"
                f" the average. Else {decides}",
            )
        from swavg.engine.kernels.integers import combine

        arrays = [np.frombuffer(raw, operation.dtype.numpy()) for raw in raws]
        target = np.frombuffer(out, operation.dtype.numpy())
        term = operation.terms[0]
        # The mean takes many bytes per element on the way.
        step = max(1, _COMBINED // len(arrays))
        for part in (slice(start, start + step) for start in range(0, batch.count, step)):
            try:
                target[part] = combine(
                    "last" if rule == "auto" else rule,
                    [array[part] for array in arrays],
                    term.weights,
                    term.uniform,
                )
            except OverflowError as error:
                raise NumericsError(f"'{name}': the mean {error}.") from None
        result.differing |= {(term.row, entry) for term in operation.terms}


_REPAIRING = threading.Lock()


def _sampler(plan: Plan, positions: Sequence[int]) -> Sampler:
    from swavg.engine.distances import Sampler

    return Sampler(plan, positions)


def spelled(value: float) -> str:
    """A value that is not finite, in words."""
    if value != value:
        return "NaN"
    return "Inf" if value > 0 else "-Inf"
