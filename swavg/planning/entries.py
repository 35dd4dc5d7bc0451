"""Entries: the tensors to make, and bytes to copy, as columns that processes share."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from swavg.dtypes import Accumulator, DType
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.strides import is_row_major, regions, row_major_strides
from swavg.formats.tensors import Box, Shape, Tensor, TensorSpec, TensorTable
from swavg.short_repr import ShortRepr


@dataclass(frozen=True, slots=True)
class Term:
    """What a row takes of a sum: weights for the ``positions`` among the members; ``uniform`` is
    the mean."""

    row: int
    positions: tuple[int, ...]
    weights: tuple[float, ...]
    uniform: bool


@dataclass(frozen=True, slots=True)
class Operation:
    """How an entry is made for all rows that share it: those of its ``terms``, ascending.

    ``op`` is that of :class:`swavg.planning.decide.Operation`, or ``bytes``: some of a ``source``
    of the one member, as they are. ``members`` are checkpoints, ascending.
    """

    op: Literal["average", "integer", "copy", "bytes"]
    dtype: DType
    accumulate: Accumulator
    members: tuple[int, ...]
    terms: tuple[Term, ...]
    source: int = 0


class Entry(NamedTuple):
    """A tensor to make, or bytes to copy. ``tensors`` are those of the operation's members, whose
    elements are taken in row-major order of ``shape``."""

    operation: Operation
    shape: Shape
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Entries(ShortRepr):
    """All entries in columns.

    ``form`` indexes ``forms``: the shape, and the order of the tensors' axes in which it is
    written (None: as they are). ``tables`` are the distinct tables of tensors, ``table_of[i]``
    checkpoint ``i``'s; ``numbers[t]`` has a tensor's number in table ``t``, and for ``bytes`` the
    offset of the first one.
    """

    operations: tuple[Operation, ...]
    operation: array[int]
    forms: tuple[tuple[Shape, Shape | None], ...]
    form: array[int]
    tables: tuple[TensorTable, ...]
    table_of: tuple[int, ...]
    numbers: tuple[array[int], ...]

    def __len__(self) -> int:
        return len(self.form)

    @property
    def gathered(self) -> bool:
        """Whether some tensors may not lie in row-major order."""
        return any(order is not None for _, order in self.forms) or any(
            table.columns.others
            or any(strides is not None for _, _, strides in table.columns.forms)
            for table in self.tables
        )

    def key(self, number: int) -> tuple[int, ...]:
        """What decides how an entry is made, but for where its tensors lie: equal for entries of
        the same operation, shape, and forms of tensors."""
        operation = self.operation[number]
        if self.operations[operation].op == "bytes":
            return operation, self.form[number]
        forms = (self._form(place, number) for place in self.places[operation])
        return operation, self.form[number], *forms

    @cached_property
    def places(self) -> list[tuple[int, ...]]:
        """The distinct tables of each operation's members."""
        return [
            tuple(dict.fromkeys(self.table_of[member] for member in operation.members))
            for operation in self.operations
        ]

    def _form(self, place: int, number: int) -> int:
        columns = self.tables[place].columns
        at = self.numbers[place][number]
        # Each of those that lie in several boxes is a form of its own.
        return -1 - at if columns.others and at in columns.others else columns.form[at]

    def make(self, checkpoints: Sequence[Checkpoint], number: int) -> Entry:
        """Entry ``number``, whole."""
        operation = self.operations[self.operation[number]]
        shape, order = self.forms[self.form[number]]
        tensors = []
        for member in operation.members:
            place = self.table_of[member]
            at = self.numbers[place][number]
            if operation.op == "bytes":
                box = Box(operation.source, at, (0,), shape)
                tensors.append(Tensor(TensorSpec("", operation.dtype, shape), (box,), shape))
            else:
                tensor = checkpoints[member].tensors.at(at)
                tensors.append(tensor if order is None else _turned(tensor, order))
        return Entry(operation, shape, tuple(tensors))


def _turned(tensor: Tensor, order: Shape) -> Tensor:
    """The tensor with its axes in this order: a box that lies so becomes row-major."""
    dtype, shape = tensor.spec.dtype, tensor.spec.shape
    boxes = []
    for box in tensor.boxes if tensor.grid == shape else _in_axes(tensor):
        strides = row_major_strides(box.shape) if box.strides is None else box.strides
        start, extents, turned = (
            tuple(values[axis] for axis in order) for values in (box.start, box.shape, strides)
        )
        lies = None if is_row_major(extents, turned) else turned
        boxes.append(Box(box.source, box.offset, start, extents, lies))
    whole = tuple(shape[axis] for axis in order)
    return Tensor(TensorSpec(tensor.spec.name, dtype, whole), tuple(boxes), whole)


def _in_axes(tensor: Tensor) -> Iterator[Box]:
    """The boxes of a tensor that is cut as a flat row, as boxes of its own axes."""
    shape, itemsize = tensor.spec.shape, tensor.spec.dtype.itemsize
    for box in tensor.boxes:
        (start,), (count,) = box.start, box.shape
        offset = box.offset
        for region in regions(shape, start, start + count):
            starts, extents = zip(*region, strict=True) if region else ((), ())
            yield Box(box.source, offset, starts, extents)
            offset += math.prod(extents) * itemsize
