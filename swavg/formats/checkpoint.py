"""What is there: an opened checkpoint, what it holds besides tensors, and reading ranges of them.

Opening finds names, dtypes, shapes and where the bytes lie; no tensor is loaded. Whatever is
special about a format (strides, several files, boxes of a distributed save) ends in
:meth:`Checkpoint.read_into`: "elements [start, stop) of this tensor into this buffer".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from swavg.dtypes import DType
from swavg.formats.records import Record, Unchecked
from swavg.formats.tensors import Shape, Tensor, TensorTable
from swavg.short_repr import ShortRepr
from swavg.storage.crc import Checksum
from swavg.storage.pool import Pool
from swavg.storage.sources import Source

if TYPE_CHECKING:
    from types import EllipsisType

    import numpy as np
    import numpy.typing as npt

    Index: TypeAlias = "int | slice | EllipsisType | tuple[int | slice | EllipsisType, ...]"
    """What NumPy takes, but for arrays."""

Scalar = int | float | str


@dataclass(frozen=True, eq=False, repr=False)
class Extras(ShortRepr):
    """What a checkpoint holds besides tensors.

    ``scalars`` are plain values by name (step), those further down by their dotted path
    (``metrics.top1``; ``-1`` is the last of a list); ``recipe`` is the text that swavg wrote. In a
    format that keeps objects, ``root_key`` is the dotted path of the state dict (empty: the top
    level), ``others`` name what lies beside it (optimizer state, a class), ``non_tensors`` what is
    in it and no tensor; only a file of the same format keeps them.
    ``siblings`` are its other state dicts by dotted path, the tensors in them under their paths in
    the file; ``doubtful`` are the paths of what may be one, ``also`` the notes on both; ``arrays``
    name NumPy arrays, which are no tensors. ``joined`` are the siblings whose tensors stand in the
    checkpoint's own table, too. ``callables`` are the functions and classes that torch would run to
    load the pickle, ``foreign`` those that it runs only where told to; 1,000 of each at most.

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
    callables: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
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


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint(ShortRepr):
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

    def facts(self) -> Mapping[str, object]:
        return {
            "path": self.path,
            "format": self.format,
            "bytes": self.size,
            "tensors": len(self),
            "elements": self.dtypes,
            "metadata": self.metadata,
            "scalars": self.extras.scalars,
            "notes": self.notes,
        }

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


@dataclass(frozen=True, eq=False, repr=False)
class LazyTensor(ShortRepr):
    """A tensor of an opened checkpoint; ``tensor[...]`` reads it, ``tensor[a:b]`` only those rows.

    The result is a NumPy array (ml_dtypes for the dtypes that NumPy lacks). A slice along the
    first dimension reads only its own bytes; any further indices are applied after reading.
    """

    checkpoint: Checkpoint
    tensor: Tensor

    def facts(self) -> Mapping[str, object]:
        return {"name": self.name, "dtype": self.dtype.name, "shape": str(list(self.shape))}

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
