"""What is there: an opened checkpoint, its tensors in columns, and reading ranges of them.

Opening finds names, dtypes, shapes and where the bytes lie; no tensor is loaded. Whatever is
special about a format (strides, several files, boxes of a distributed save) ends in
:meth:`Checkpoint.read_into`: "elements [start, stop) of this tensor into this buffer".
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from swavg.dtypes import DType
from swavg.formats.records import Record, Unchecked
from swavg.storage.crc import Checksum
from swavg.storage.sources import Pool, Source

if TYPE_CHECKING:
    from types import EllipsisType

    import numpy as np
    import numpy.typing as npt

    Index: TypeAlias = "int | slice | EllipsisType | tuple[int | slice | EllipsisType, ...]"
    """What NumPy takes, but for arrays."""

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
    def single(self) -> Box | None:
        """The box of a tensor that lies in one place."""
        return self.boxes[0] if len(self.boxes) == 1 else None

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


@dataclass(frozen=True, eq=False, slots=True)
class Columns:
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


@dataclass(frozen=True, eq=False)
class Shared:
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

    def build(self, shared: Shared | None = None) -> TensorTable:
        """The table; equal ones that ``shared`` knows are one, wherever in a file they begin."""
        base = min(self._offset, default=0)
        if base:
            self._offset = array("q", [offset - base for offset in self._offset])
        names, forms = tuple(self._names), tuple(self._forms)
        columns = Columns(names, forms, self._form, self._offset, self._source, self._others)
        if shared is None or self._others:
            return TensorTable(columns, base)
        numbers = (self._form, self._offset, self._source)
        key = (hash(names), forms, *(column.tobytes() for column in numbers))
        found = shared.columns.setdefault(key, columns)
        return TensorTable(found if found.names == names else columns, base)


Scalar = int | float | str


@dataclass(frozen=True, eq=False)
class Extras:
    """What a checkpoint holds besides tensors.

    ``scalars`` are plain values by name (step), those further down by their dotted path
    (``metrics.top1``; ``-1`` is the last of a list); ``recipe`` is the text that swavg wrote. In a
    format that keeps objects, ``root_key`` is the dotted path of the state dict (empty: the top
    level), ``others`` name what lies beside it (optimizer state, a class), ``non_tensors`` what is
    in it and no tensor; only a file of the same format keeps them.
    ``siblings`` are its other state dicts by dotted path, the tensors in them under their paths in
    the file; ``doubtful`` are the paths of what may be one, ``also`` the notes on both; ``arrays``
    name NumPy arrays, which are no tensors. ``joined`` are the siblings whose tensors stand in the
    checkpoint's own table, too.

    Of a folder, ``shards`` maps its weight files to the names of their tensors, in order, as the
    file ``index`` says, if there is one; ``side_files`` are paths of files that go along with the
    weights, by name, ``left_out`` names of those that do not. ``records`` are stretches whose
    ``checksum`` is known, by source; ``always_checked``: whoever reads of them compares it, as the
    format's own library does. ``template`` is for the format's own writer.
    ``masters``: the tensors are those that training updates, of wider dtypes than the copies which
    configuration beside them is about.
    ``held`` counts the bytes that are kept in memory when the tensors are read in order,
    ``decoded`` those of the largest row of chunks that is decoded at once.
    """

    scalars: Mapping[str, Scalar] = field(default_factory=dict)
    records: Mapping[int, Iterable[Record]] = field(default_factory=dict)
    checksum: Checksum = "crc32"
    always_checked: bool = False
    recipe: str | None = None
    root_key: str | None = None
    others: tuple[str, ...] = ()
    non_tensors: tuple[str, ...] = ()
    siblings: Mapping[str, TensorTable] = field(default_factory=dict)
    doubtful: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()
    shards: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    index: str | None = None
    index_metadata: Mapping[str, object] = field(default_factory=dict)
    side_files: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    template: object = None
    masters: bool = False
    held: int = 0
    decoded: int = 0

    @property
    def is_optimizer(self) -> bool:
        """Whether the state dict that was found is the state of an optimizer."""
        return self.root_key == "state" and "param_groups" in self.others

    @property
    def names_beside(self) -> frozenset[str]:
        """The names of the siblings' tensors that stand in the checkpoint's own table."""
        return frozenset(name for path in self.joined for name in self.siblings[path])


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened checkpoint: facts and offsets only.

    ``format`` is the name of its row in the table of formats, or ``composite``. ``metadata`` are
    the strings of a safetensors header. ``notes`` are things its user should know (another state
    dict that was not chosen, say). ``renamed``: its user has
    changed names of tensors, which are not the file's.
    """

    path: str
    format: str
    sources: tuple[Source, ...]
    tensors: TensorTable
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    extras: Extras = field(default_factory=Extras)
    renamed: bool = False

    @property
    def dtypes(self) -> dict[str, int]:
        """Elements of each dtype, the most first."""
        columns = self.tensors.columns
        numels = [math.prod(shape) for _, shape, _ in columns.forms]
        found: dict[str, int] = {}
        for form in columns.form:
            name = columns.forms[form][0].name
            found[name] = found.get(name, 0) + numels[form]
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    @property
    def size(self) -> int:
        """Bytes of all files of the checkpoint."""
        # A member of a file that is a source of its own has the file's name.
        return sum({each.name: each.size for each in reversed(self.sources)}.values())

    @cached_property
    def ties(self) -> tuple[tuple[str, ...], ...]:
        """Groups of two or more names that are one tensor: same bytes, dtype, shape and strides."""
        columns = self.tensors.columns
        if len(set(columns.offset)) == len(columns.offset):
            return ()
        groups: dict[tuple[int, int, int], list[int]] = {}
        places = zip(columns.offset, columns.form, columns.source, strict=True)
        for number, place in enumerate(places):
            groups.setdefault(place, []).append(number)
        return tuple(
            tuple(columns.names[number] for number in numbers)
            for numbers in groups.values()
            if len(numbers) > 1
            and 0 not in columns.forms[columns.form[numbers[0]]][1]
            and len({self.tensors.at(number).boxes for number in numbers}) == 1
        )

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def keys(self) -> Iterator[str]:
        return iter(self.tensors)

    def __getitem__(self, name: str) -> LazyTensor:
        """The tensor ``name``, not yet read; KeyError if there is none."""
        return LazyTensor(self, self.tensors[name])

    def read(self, name: str) -> npt.NDArray[np.generic]:
        """The whole tensor ``name`` as a NumPy array of its shape."""
        return self[name][...]

    @cached_property
    def _unchecked(self) -> Unchecked | None:
        extras = self.extras
        if not extras.always_checked:
            return None
        return Unchecked(self.sources, extras.records, extras.checksum)

    def read_into(self, tensor: Tensor, start: int, stop: int, out: memoryview, pool: Pool) -> None:
        """Fill ``out`` with the row-major elements ``[start, stop)`` of a tensor, packed.

        Elements narrower than a byte begin and end at whole bytes. Raises InputError, also where
        the format wants checksums compared and that of the tensor is another.
        """
        if self._unchecked is not None:
            self._unchecked.check(pool, ((box.source, box.offset) for box in tensor.boxes))
        self.read_unchecked(tensor, start, stop, out, pool)

    def read_unchecked(
        self, tensor: Tensor, start: int, stop: int, out: memoryview, pool: Pool
    ) -> None:
        """As :meth:`read_into`, for a run of the engine, which compares checksums by itself."""
        box = tensor.packed
        if box is None:
            from swavg.formats.gather import gather

            gather(pool, self.sources, tensor, start, stop, out)
        elif stop > start:
            offset = box.offset + start * tensor.spec.dtype.bits // 8
            pool.read_into(self.sources[box.source], offset, out)

    def read_range(self, tensor: Tensor, start: int, stop: int, pool: Pool) -> bytearray:
        """The row-major elements ``[start, stop)`` of a tensor, as :meth:`read_unchecked`."""
        data = bytearray(tensor.spec.dtype.nbytes(stop - start))
        self.read_unchecked(tensor, start, stop, memoryview(data), pool)
        return data


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor of an opened checkpoint; ``tensor[...]`` reads it, ``tensor[a:b]`` only those rows.

    The result is a NumPy array (ml_dtypes for the dtypes that NumPy lacks). A slice along the
    first dimension reads only its own bytes; any further indices are applied after reading.
    """

    checkpoint: Checkpoint
    tensor: Tensor

    @property
    def name(self) -> str:
        return self.tensor.spec.name

    @property
    def dtype(self) -> DType:
        return self.tensor.spec.dtype

    @property
    def shape(self) -> Shape:
        return self.tensor.spec.shape

    def __getitem__(self, index: Index) -> npt.NDArray[np.generic]:
        from swavg.formats.gather import read_rows

        return read_rows(self.checkpoint, self.tensor, index)
