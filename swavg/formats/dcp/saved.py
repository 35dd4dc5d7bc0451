"""What a distributed checkpoint holds, going by its ``.metadata``: tensors in chunks, objects."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

from swavg.dtypes import BY_NAME, DType
from swavg.formats.tensors import Box, Shape, Tensor, TensorSpec

OLD_PROPERTIES = "torch.distributed._shard.sharded_tensor.metadata"
"""Where torch had the properties of tensors before 2.3."""


class Place(NamedTuple):
    """``length`` bytes of file number ``file`` from ``offset`` on: a whole zip that torch.save
    wrote. ``transforms`` name what was done to them (a compression)."""

    file: int
    offset: int
    length: int
    transforms: tuple[str, ...] = ()


class Chunk(NamedTuple):
    """A box of a tensor, ``shape`` elements from ``start`` on, and where it lies."""

    start: Shape
    shape: Shape
    place: Place


class ChunkColumns:
    """Chunks without an object for each: hundreds of ranks save hundreds of thousands."""

    def __init__(self) -> None:
        self.starts: list[Shape] = []
        self.shapes: list[Shape] = []
        self.files = array("I")
        self.offsets = array("q")
        self.lengths = array("q")
        self.transforms: dict[int, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self.starts)

    def add(self, start: Shape, shape: Shape, place: Place) -> None:
        """Append a chunk."""
        if place.transforms:
            self.transforms[len(self.starts)] = place.transforms
        self.starts.append(start)
        self.shapes.append(shape)
        self.files.append(place.file)
        self.offsets.append(place.offset)
        self.lengths.append(place.length)

    def in_files(self) -> list[int]:
        """The numbers of the chunks in the order in which they lie in the files."""
        order = sorted(range(len(self)), key=self.offsets.__getitem__)
        order.sort(key=self.files.__getitem__)
        return order

    def place(self, number: int) -> Place:
        return Place(
            self.files[number],
            self.offsets[number],
            self.lengths[number],
            self.transforms.get(number, ()) if self.transforms else (),
        )


@dataclass(frozen=True, eq=False, slots=True)
class BoxColumns:
    """Boxes without an object for each; ``strides`` are those of boxes that are not row-major."""

    starts: Sequence[Shape]
    shapes: Sequence[Shape]
    sources: array[int]
    offsets: array[int]
    strides: Mapping[int, Shape]

    def tensor(self, of: tuple[TensorSpec, int, int]) -> Tensor:
        """The tensor of this spec, from its first box to where they end."""
        spec, first, stop = of
        own = slice(first, stop)
        columns = self.sources[own], self.offsets[own], self.starts[own], self.shapes[own]
        strides = map(self.strides.get, range(first, stop))
        return Tensor(spec, tuple(map(Box, *columns, strides)), spec.shape)


class Chunks(Sequence[Chunk]):
    """Those from ``first`` to ``stop`` of ``columns``; each is made when it is asked for."""

    __slots__ = ("_columns", "_numbers")

    def __init__(self, columns: ChunkColumns, first: int, stop: int) -> None:
        self._columns = columns
        self._numbers = range(first, stop)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Chunk: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Chunk]: ...
    def __getitem__(self, index: int | slice) -> Chunk | Sequence[Chunk]:
        numbers = self._numbers[index]
        if isinstance(numbers, range):
            return [self._chunk(number) for number in numbers]
        return self._chunk(numbers)

    def __iter__(self) -> Iterator[Chunk]:
        columns, stretch = self._columns, slice(self._numbers.start, self._numbers.stop)
        transforms = columns.transforms
        boxes = zip(columns.starts[stretch], columns.shapes[stretch], strict=True)
        places = zip(
            columns.files[stretch], columns.offsets[stretch], columns.lengths[stretch], strict=True
        )
        for number, (start, shape), place in zip(self._numbers, boxes, places, strict=True):
            own = transforms.get(number, ()) if transforms else ()
            yield Chunk(start, shape, Place(*place, own))

    def _chunk(self, number: int) -> Chunk:
        columns = self._columns
        return Chunk(columns.starts[number], columns.shapes[number], columns.place(number))


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """``dtype`` is torch's name of it, ``known`` ours (None: it is none of the table's)."""

    dtype: str
    shape: Shape
    chunks: Sequence[Chunk]

    @property
    def known(self) -> DType | None:
        return BY_NAME.get(self.dtype)


@dataclass(frozen=True, slots=True)
class Saved:
    """What a distributed checkpoint holds: ``tensors`` and pickled ``objects`` by their full names,
    in the data ``files`` of its folder. ``paths`` has the keys of the nested dictionaries that a
    name stands for, if they are recorded. ``old``: as torch before 2.3 wrote it, which reads no
    other."""

    files: tuple[str, ...]
    tensors: Mapping[str, SavedTensor]
    objects: Mapping[str, Place]
    paths: Mapping[str, tuple[str | int, ...]]
    old: bool = False

    def path(self, name: str) -> tuple[str | int, ...]:
        """The keys that lead to ``name``."""
        return self.paths.get(name, (name,))

    def everything(self) -> Iterator[tuple[str, Place]]:
        """Each place with the name of what lies there."""
        for name, tensor in self.tensors.items():
            for chunk in tensor.chunks:
                yield name, chunk.place
        yield from self.objects.items()
