"""NumPy arrays in a torch pickle, as tensors whose storage is the pickle itself.

From protocol 3 on the pickle has an array's bytes as they are. Protocol 2, which torch writes by
default, has no opcode for bytes: it spells them as a text in Latin-1, which is written as UTF-8.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import islice

from swavg.dtypes import BY_NAME, DType
from swavg.errors import InputError
from swavg.formats.strides import row_major_strides
from swavg.formats.torch.machine import LARGE
from swavg.formats.torch.objects import Global, Opaque, PickledBytes, Storage, View, mapping
from swavg.storage.sources import InFile, Reader

FAR = 1 << 50
"""From here on the bytes are read that texts spell: no file is so long."""

_MOST = LARGE
"""Bytes of an array: its text is read whole, and of larger ones the unpickler keeps nothing."""

_MAX_DIMENSIONS = 64
_NEAR = 100
_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric",
            "numpy._core.numeric")  # fmt: skip
_DTYPES = {
    "b1": "bool", "i1": "int8", "i2": "int16", "i4": "int32", "i8": "int64", "u1": "uint8",
    "u2": "uint16", "u4": "uint32", "u8": "uint64", "f2": "float16", "f4": "float32",
    "f8": "float64", "c8": "complex64", "c16": "complex128",
}  # fmt: skip


@dataclass(eq=False, slots=True)
class PickledStorage(Storage):
    """Bytes that the pickle has at ``at``, as a text or as they are."""

    at: int = 0
    as_text: bool = False


def is_array(node: object) -> bool:
    """Whether a NumPy array is made, of whatever kind and size."""
    return (
        isinstance(node, Opaque)
        and isinstance(node.of, Global)
        and node.of.module in _MODULES
        and node.of.name in ("_reconstruct", "_frombuffer")
    )


def are_arrays(node: object) -> bool:
    """Whether a dictionary has an array among its values, or a list has nothing else."""
    if isinstance(node, (list, tuple)):
        return bool(node) and all(map(is_array, node))
    return any(map(is_array, islice((mapping(node) or {}).values(), _NEAR)))


def array_of(node: object) -> View | None:
    """The array that is made, as a tensor; None for anything else, for arrays of objects, records,
    other byte orders and subclasses, and where its bytes are not in one place that is its own."""
    if not (isinstance(node, Opaque) and is_array(node)):
        return None
    match node.args, node.state:
        case (Global("numpy", "ndarray"), *_), (int(), tuple(shape), dtype, bool(fortran), data):
            pass
        case (data, dtype, tuple(shape), "C" | "F" as order), None:
            fortran = order == "F"
        case _:
            return None
    kind = _dtype(dtype)
    if kind is None or len(shape) > _MAX_DIMENSIONS or not all(map(_is_size, shape)):
        return None
    numel, strides = math.prod(shape), row_major_strides(shape)
    if fortran:
        strides = row_major_strides(shape[::-1])[::-1]
    if numel == 0:
        storage = PickledStorage("", "ndarray", kind, kind.itemsize, 0, 0)
        return View(storage, kind, 0, shape, strides)
    nbytes = kind.nbytes(numel)
    # A single byte is one object in all of a process: others may refer to it.
    if not 1 < nbytes <= _MOST or not isinstance(data, PickledBytes):
        return None
    if data.at is None or len(data) != nbytes:
        return None
    storage = PickledStorage(
        "", "ndarray", kind, kind.itemsize, numel, numel, at=data.at, as_text=data.as_text
    )
    return View(storage, kind, 0, shape, strides)


def _is_size(size: object) -> bool:
    return type(size) is int and 0 <= size <= _MOST


def _dtype(node: object) -> DType | None:
    match node:
        case Opaque(
            Global("numpy", "dtype"), (str(code), *_), (_, "<" | "|", None, None, None, *_)
        ):
            return BY_NAME.get(_DTYPES.get(code, ""))
    return None


def place_texts(storages: Collection[Storage], locate: Callable[[Storage], int]) -> dict[int, int]:
    """Of the texts among the ``storages``, ascending: their offsets in the file, each with the one
    from which on the bytes are read that it spells.

    Texts of other values have other lengths. Going by their order, in all checkpoints of a run
    their bytes lie alike, as seen from the first of the other storages.
    """
    texts = {s.at: s for s in storages if isinstance(s, PickledStorage) and s.as_text}
    if not texts:
        return {}
    start = FAR + min((locate(s) for s in storages if not isinstance(s, PickledStorage)), default=0)
    places = {}
    for _, storage in sorted(texts.items()):
        places[locate(storage)] = start
        start += storage.numel * (storage.itemsize or 0)
    return places


@dataclass(frozen=True, slots=True)
class FileWithTexts(InFile):
    """A file, and what texts in it spell: ``starts`` are the offsets from which on these bytes are
    read, ascending, ``texts`` those of the texts in the file, before which their lengths stand."""

    starts: tuple[int, ...]
    texts: tuple[int, ...]

    def __hash__(self) -> int:
        return hash(self.file)

    @property
    def size(self) -> int:
        return self.file.size

    @property
    def identity(self) -> tuple[object, ...]:
        return self.file.identity

    def open(self) -> OpenFileWithTexts:
        return OpenFileWithTexts(self, self.file.open())


@dataclass(frozen=True, slots=True)
class OpenFileWithTexts:
    """The same, open for reading."""

    source: FileWithTexts
    file: Reader

    def read_into(self, offset: int, out: memoryview) -> None:
        if offset < FAR:
            self.file.read_into(offset, out)
            return
        starts, end = self.source.starts, offset + len(out)
        # Several that lie one behind the other are read at once.
        for number in range(bisect_right(starts, offset) - 1, bisect_left(starts, end)):
            start, data = starts[number], self._spelled(self.source.texts[number])
            first, last = max(start, offset), min(start + len(data), end)
            out[first - offset : last - offset] = data[first - start : last - start]

    def _spelled(self, at: int) -> bytes:
        """The bytes of the text at this offset of the file."""
        head = bytearray(4)
        self.file.read_into(at - 4, memoryview(head))
        text = bytearray(int.from_bytes(head, "little"))
        self.file.read_into(at, memoryview(text))
        try:
            return text.decode().encode("latin-1")
        except UnicodeError:
            raise InputError(self.source.name, "changed while it was read") from None

    def close(self) -> None:
        self.file.close()
