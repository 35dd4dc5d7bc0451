"""The tensors of a checkpoint: facts and places, in columns, without an object for each."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Generic, TypeVar

from swavg.dtypes import DType
from swavg.short_repr import ShortRepr

Shape = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, element type and shape (elements per dimension; ``()`` is a scalar) of a tensor."""

    name: str
    dtype: DType
    shape: Shape

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed tensor in row-major order."""
        return self.dtype.nbytes(self.numel)


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a tensor that lies in one place.

    ``source`` indexes the checkpoint's sources; ``offset`` is the byte of the box's first element
    there. The box covers ``shape`` elements from ``start`` on, of the tensor's grid. ``strides``
    (elements per step of each dimension) is None where the box lies in row-major order.
    """

    source: int
    offset: int
    start: Shape
    shape: Shape
    strides: Shape | None = None


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a checkpoint: what it is, and the boxes that tile it.

    ``grid`` is the shape that the boxes divide: the tensor's own, or ``(numel,)`` where a format
    cuts the flat row of its elements.
    """

    spec: TensorSpec
    boxes: tuple[Box, ...]
    grid: Shape

    @property
    def packed(self) -> Box | None:
        """The box of a tensor that lies in one place in row-major order."""
        return self.boxes[0] if len(self.boxes) == 1 and self.boxes[0].strides is None else None

    @property
    def in_rows(self) -> bool:
        """Whether each box is whole rows of the grid, as they lie: a range of its elements."""
        rest = self.grid[1:]
        return all(box.strides is None and box.shape[1:] == rest for box in self.boxes)


GATHERING = 1 << 20
"""Bytes that reading a tensor which does not lie packed may take besides the result."""

Form = tuple[DType, Shape, Shape | None]
"""Dtype, shape and strides (None: row-major): what many tensors have in common."""


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class Columns(ShortRepr):
    """The tensors of a checkpoint without an object for each.

    ``forms`` are the distinct dtypes, shapes and strides; ``form``, ``offset`` and ``source`` have
    an entry per tensor. Offsets are bytes from the base of the :class:`TensorTable`. ``others`` are
    the tensors of several boxes, by index.
    """

    names: tuple[str, ...]
    forms: tuple[Form, ...]
    form: array[int]
    offset: array[int]
    source: array[int]
    others: Mapping[int, Tensor]


class TensorTable(Mapping[str, Tensor]):
    """A checkpoint's tensors by name, in its own order; each is made when it is asked for.

    Checkpoints of one run have equal ``columns``, which are then one object; ``base`` is added to
    their offsets.
    """

    def __init__(self, columns: Columns, base: int) -> None:
        self.columns = columns
        self.base = base

    def __getstate__(self) -> tuple[Columns, int]:
        # The index is made anew where it is needed.
        return self.columns, self.base

    def __setstate__(self, state: tuple[Columns, int]) -> None:
        self.columns, self.base = state

    @cached_property
    def index(self) -> Mapping[str, int]:
        """The number of each tensor."""
        return {name: number for number, name in enumerate(self.columns.names)}

    def __len__(self) -> int:
        return len(self.columns.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns.names)

    def __contains__(self, name: object) -> bool:
        return name in self.index

    def __getitem__(self, name: str) -> Tensor:
        return self.at(self.index[name])

    def at(self, number: int) -> Tensor:
        """The tensor of this number."""
        columns = self.columns
        if columns.others and number in columns.others:
            return columns.others[number]
        dtype, shape, strides = columns.forms[columns.form[number]]
        source, offset = columns.source[number], self.base + columns.offset[number]
        box = Box(source, offset, (0,) * len(shape), shape, strides)
        return Tensor(TensorSpec(columns.names[number], dtype, shape), (box,), shape)

    def form_of(self, number: int) -> Form:
        """Dtype, shape and strides of a tensor."""
        return self.columns.forms[self.columns.form[number]]


class Made(Mapping[int, Tensor], Generic[T]):
    """Tensors by number, which ``make`` makes of what is ``known`` when they are asked for: a large
    model on many ranks has more boxes than there is room for."""

    def __init__(self, known: Mapping[int, T], make: Callable[[T], Tensor]) -> None:
        self._known = known
        self._make = make

    def __getitem__(self, number: int) -> Tensor:
        return self._make(self._known[number])

    def __contains__(self, number: object) -> bool:
        return number in self._known

    def __iter__(self) -> Iterator[int]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


@dataclass(frozen=True, eq=False, repr=False)
class Shared(ShortRepr):
    """What checkpoints of one run have in common, kept once: ``columns`` by their content, or by
    the digest of the header that says it; ``parsed`` is a format's own."""

    columns: dict[object, Columns] = field(default_factory=dict)
    parsed: dict[object, object] = field(default_factory=dict)

    def once(self, kind: type[T], key: object, make: Callable[[], T]) -> T:
        """What a format made of this ``kind`` for this ``key``: the first time is the only one."""
        found = self.parsed.get((kind, key))
        if not isinstance(found, kind):
            found = self.parsed[kind, key] = make()
        return found


class TableBuilder:
    """Collects tensors into a table."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._forms: dict[Form, int] = {}
        self._form = array("I")
        self._offset = array("q")
        self._source = array("I")
        self._others: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, form: Form, offset: int, source: int = 0) -> None:
        """A tensor that lies in one place."""
        self._names.append(name)
        self._form.append(self._forms.setdefault(form, len(self._forms)))
        self._offset.append(offset)
        self._source.append(source)

    def add_boxes(self, tensor: Tensor) -> None:
        """A tensor of any number of boxes."""
        self._others[len(self._names)] = tensor
        # Its first box tells it from others.
        first = tensor.boxes[0] if tensor.boxes else Box(0, 0, (), ())
        form = tensor.spec.dtype, tensor.spec.shape, None
        self.add(tensor.spec.name, form, first.offset, first.source)

    def add_of(self, table: TensorTable, number: int, first: int, prefix: str = "") -> None:
        """A tensor of another table whose sources begin at ``first`` here, its name behind
        ``prefix``."""
        columns = table.columns
        name = prefix + columns.names[number]
        if number in columns.others:
            tensor = columns.others[number]
            boxes = (replace(box, source=first + box.source) for box in tensor.boxes)
            spec = replace(tensor.spec, name=name)
            self.add_boxes(replace(tensor, spec=spec, boxes=tuple(boxes)))
        else:
            offset = table.base + columns.offset[number]
            self.add(name, table.form_of(number), offset, first + columns.source[number])

    def build(
        self, shared: Shared | None = None, others: Mapping[int, Tensor] | None = None
    ) -> TensorTable:
        """The table; equal ones that ``shared`` knows are one, wherever in a file they begin.
        ``others`` are tensors of several boxes by their numbers, of which the first was added."""
        others = others or self._others
        base = min(self._offset, default=0)
        if base:
            self._offset = array("q", [offset - base for offset in self._offset])
        names, forms = tuple(self._names), tuple(self._forms)
        columns = Columns(names, forms, self._form, self._offset, self._source, others)
        if shared is None or others:
            return TensorTable(columns, base)
        numbers = (self._form, self._offset, self._source)
        key = (hash(names), forms, *(column.tobytes() for column in numbers))
        found = shared.columns.setdefault(key, columns)
        return TensorTable(found if found.names == names else columns, base)
