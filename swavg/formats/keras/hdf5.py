"""Where the datasets of an HDF5 file lie. h5py reads its structure; the bytes of datasets that lie
in one place are read without it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swavg.dtypes import BY_NAME, DType
from swavg.errors import InputError
from swavg.formats.strides import regions
from swavg.formats.tensors import Shape
from swavg.storage.pool import Window
from swavg.storage.sources import InFile, Reader, Source

if TYPE_CHECKING:
    import h5py

_MAX_DATASETS = 200_000
_MAX_CHUNK = 64 << 20
"""Bytes of a compressed chunk at most: it is unpacked whole."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset by its path in the file. ``dtype`` is None for what holds no numbers (text,
    records). ``offset`` counts bytes from the beginning of the file; None: its elements do not
    lie in one place."""

    name: str
    dtype: DType | None
    shape: Shape
    offset: int | None

    @property
    def nbytes(self) -> int:
        return 0 if self.dtype is None else self.dtype.nbytes(math.prod(self.shape))


@dataclass(slots=True)
class Changes:
    """What h5py changes in a file that stays as it is: bytes by their offsets, and the new size."""

    size: int
    at: dict[int, int] = field(default_factory=dict)


class _ChangedWindow(Window):
    """A window that seems to have the ``changes``."""

    def __init__(self, reader: Reader, start: int, size: int, changes: Changes) -> None:
        super().__init__(reader, start, size)
        self._changes = changes

    def writable(self) -> bool:
        return True

    @property
    def end(self) -> int:
        return self._changes.size

    def readinto(self, out: memoryview) -> int:  # type: ignore[override]
        start = self._at
        count = max(0, min(len(out), self._changes.size - start))
        self._read_into(start, memoryview(out)[:count])
        for at, byte in self._changes.at.items():
            if start <= at < start + count:
                out[at - start] = byte
        self._at += count
        return count

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        before = bytearray(len(data))
        self._read_into(self._at, memoryview(before))
        for at, (new, old) in enumerate(zip(bytes(data), before, strict=True), self._at):
            # Data that HDF5 writes back as they were may be tensors.
            if new != old:
                self._changes.at[at] = new
            else:
                self._changes.at.pop(at, None)
        self._at += len(data)
        self._changes.size = max(self._changes.size, self._at)
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        self._changes.size = self._at if size is None else size
        return self._changes.size

    def _read_into(self, at: int, out: memoryview) -> None:
        """The file's own bytes, and zeros behind its end."""
        count = max(0, min(len(out), self._size - at))
        self._reader.read_into(self._start + at, out[:count])
        out[count:] = bytes(len(out) - count)


_FAILS = (OSError, ValueError, KeyError, TypeError, RuntimeError, OverflowError)
"""What h5py raises for damaged files."""


@contextmanager
def opened(
    file: Source, start: int, size: int, changes: Changes | None = None
) -> Iterator[h5py.File]:
    """The HDF5 file in ``size`` bytes from ``start`` on; with ``changes`` it can be changed, and
    they have what was when it is closed. InputError, also for what fails in it."""
    try:
        import h5py
    except ImportError:
        raise InputError(
            file.name,
            "is of HDF5, and h5py, which reads its structure, is not installed",
            hint="pip install 'swavg[keras]'",
        ) from None
    reader = file.open()
    try:
        window = Window(reader, start, size)
        if changes is not None:
            window = _ChangedWindow(reader, start, size, changes)
        with h5py.File(window, "r" if changes is None else "r+") as whole:
            yield whole
    except _FAILS as error:
        raise InputError(file.name, f"cannot be read as HDF5 ({error})") from None
    finally:
        reader.close()


def datasets_in(file: Source, start: int, size: int) -> list[Dataset]:
    """The datasets of the HDF5 file in ``size`` bytes from ``start`` on, in the order of their
    names. InputError unless their bytes are all in it, each for one of them."""
    found: list[Dataset] = []
    with opened(file, start, size) as whole:
        import h5py

        def visit(name: str | bytes, node: object) -> None:
            if isinstance(name, bytes):
                raise InputError(file.name, f"has the unreadable name {name[:40]!r}")
            if isinstance(node, h5py.Dataset):
                found.append(_dataset(file.name, name, node))
            if len(found) > _MAX_DATASETS:
                raise InputError(file.name, f"has more than {_MAX_DATASETS:,} datasets")

        whole.visititems(visit)
    end = 0
    in_place = [each for each in found if each.nbytes and each.offset is not None]
    for each in sorted(in_place, key=lambda each: each.offset or 0):
        assert each.offset is not None
        if each.offset < end:
            raise InputError(file.name, f"corrupt: '{each.name}' overlaps another dataset")
        end = each.offset + each.nbytes
        if end > size:
            raise InputError(file.name, f"truncated: '{each.name}' reaches beyond its end")
    return found


def _dataset(path: str, name: str, node: h5py.Dataset) -> Dataset:
    from h5py import h5d

    dtype = _dtype_of(path, name, node)
    if dtype is None or node.shape is None:
        return Dataset(name, None, (), None)
    how = node.id.get_create_plist()
    if how.get_layout() == h5d.VIRTUAL or how.get_external_count():
        raise InputError(path, f"the data of '{name}' lie in other files")
    chunk = math.prod(node.chunks or ()) * dtype.itemsize
    if chunk > _MAX_CHUNK:
        raise InputError(path, f"'{name}' has chunks of {chunk:,} bytes: at most {_MAX_CHUNK:,}")
    offset = node.id.get_offset() if how.get_layout() == h5d.CONTIGUOUS else None
    return Dataset(name, dtype, tuple(node.shape), offset)


def _dtype_of(path: str, name: str, node: h5py.Dataset) -> DType | None:
    kind, text = node.dtype.kind, node.dtype.name
    if kind == "V" and node.dtype.fields is None:
        # Keras writes what HDF5 has no type for as opaque bytes, with an attribute that says what
        # it is: of two bytes there is one such type. To read a text of a damaged file may take
        # HDF5 forever.
        text = "bfloat16" if node.dtype.itemsize == 2 and "dtype" in node.attrs else text
    elif kind not in "biufc":
        return None
    dtype = BY_NAME.get(text)
    if dtype is None or dtype.bits != 8 * node.dtype.itemsize:
        raise InputError(path, f"'{name}' has the dtype {node.dtype}, which swavg does not know")
    if node.dtype.byteorder == ">":
        raise InputError(path, f"'{name}' is big-endian")
    return dtype


@dataclass(frozen=True, slots=True)
class DatasetSource(InFile):
    """The row-major elements of a dataset that do not lie in one place, as h5py reads them. The
    HDF5 file lies in ``length`` bytes of ``file`` from ``start`` on."""

    start: int
    length: int
    dataset: str
    shape: Shape
    itemsize: int

    forks = False

    def __hash__(self) -> int:
        return hash((self.file.name, self.dataset))

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.itemsize

    @property
    def identity(self) -> tuple[object, ...]:
        return (*self.file.identity, self.dataset)

    def open(self) -> _DatasetReader:
        return _DatasetReader(self)


class _DatasetReader:
    def __init__(self, source: DatasetSource) -> None:
        self._source, self._stack = source, ExitStack()
        whole = self._stack.enter_context(opened(source.file, source.start, source.length))
        self._node = whole[source.dataset]

    def read_into(self, offset: int, out: memoryview) -> None:
        import numpy as np

        size = self._source.itemsize
        first, last = offset // size, -(-(offset + len(out)) // size)
        elements, done = np.empty(last - first, self._node.dtype), 0
        try:
            for region in regions(self._source.shape, first, last):
                part = self._node[tuple(slice(at, at + count) for at, count in region)]
                elements[done : done + part.size] = part.reshape(-1)
                done += part.size
        except _FAILS as error:
            raise InputError(self._source.name, f"cannot be read as HDF5 ({error})") from None
        out[:] = elements.view(np.uint8).data[offset - first * size :][: len(out)]

    def close(self) -> None:
        self._stack.close()
