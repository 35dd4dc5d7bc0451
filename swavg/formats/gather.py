"""Row-major ranges of tensors that lie otherwise: strided, or in several boxes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from swavg.dtypes import DType
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.strides import is_row_major, regions, row_major_strides
from swavg.formats.tensors import GATHERING, Box, Shape, Tensor
from swavg.storage.pool import Pool
from swavg.storage.sources import Source

if TYPE_CHECKING:
    import numpy.typing as npt

    from swavg.formats.checkpoint import Index

    Array = npt.NDArray[np.generic]

_SPARSE = 4
"""A stretch is read whole if it is at most this many times as long as what is wanted of it."""
_SHORT = 1 << 14
"""Bytes below which a stretch is read whole however little of it is wanted: a read takes as long as
moving that many."""
_LEAST = 1 << 16
"""Bytes that may be held besides the result, however small that is."""


def element(dtype: DType) -> np.dtype[np.generic]:
    """A NumPy dtype of the same size, whose copies keep every bit."""
    return np.dtype(np.complex128) if dtype.itemsize == 16 else np.dtype(f"u{dtype.itemsize}")


def gather(
    pool: Pool, sources: Sequence[Source], tensor: Tensor, start: int, stop: int, out: memoryview
) -> None:
    """Fill ``out`` with the row-major elements ``[start, stop)``. InputError if a read fails.

    Four times the memory of ``out`` is taken besides, at most :data:`GATHERING`.
    """
    if start >= stop:
        return
    if tensor.grid and tensor.in_rows:
        _read_rows(pool, sources, tensor, start, stop, out)
        return
    most = max(_LEAST, min(_SPARSE * len(out), GATHERING))
    target = np.frombuffer(out, element(tensor.spec.dtype))
    done = 0
    for region in regions(tensor.grid, start, stop):
        count = math.prod(size for _, size in region)
        part = target[done : done + count].reshape([size for _, size in region])
        for box in tensor.boxes:
            _fill(pool, sources[box.source], box, region, part, most)
        done += count


def _read_rows(
    pool: Pool, sources: Sequence[Source], tensor: Tensor, start: int, stop: int, out: memoryview
) -> None:
    inner, itemsize = math.prod(tensor.grid[1:]), tensor.spec.dtype.itemsize
    for box in tensor.boxes:
        begin = box.start[0] * inner
        low, high = max(start, begin), min(stop, begin + box.shape[0] * inner)
        if low < high:
            part = out[(low - start) * itemsize : (high - start) * itemsize]
            pool.read_into(sources[box.source], box.offset + (low - begin) * itemsize, part)


def _fill(
    pool: Pool,
    source: Source,
    box: Box,
    region: Sequence[tuple[int, int]],
    out: Array,
    most: int,
) -> None:
    """Read what a region (which ``out`` holds) has in common with a box, with at most ``most``
    bytes besides."""
    offset, cuts = box.offset, []
    strides = row_major_strides(box.shape) if box.strides is None else box.strides
    for (first, count), begin, extent, stride in zip(
        region, box.start, box.shape, strides, strict=True
    ):
        low, high = max(first, begin), min(first + count, begin + extent)
        if low >= high:
            return
        offset += (low - begin) * stride * out.itemsize
        cuts.append(slice(low - first, high - first))
    _read(pool, source, offset, strides, out[tuple(cuts)], most)


def _read(pool: Pool, source: Source, offset: int, strides: Shape, out: Array, most: int) -> None:
    """Fill ``out`` with the elements that lie at ``strides`` from the byte ``offset`` on."""
    itemsize, shape = out.itemsize, out.shape
    # From the slowest to the fastest as they are stored.
    axes = sorted((a for a in range(out.ndim) if shape[a] > 1), key=lambda a: -strides[a])

    def stretch(inner: Sequence[int]) -> int:
        steps: int = sum((shape[axis] - 1) * strides[axis] for axis in inner)
        return 1 + steps

    split = 0
    while (length := stretch(axes[split:])) * itemsize > _SHORT and (
        length > _SPARSE * math.prod(shape[axis] for axis in axes[split:])
    ):
        split += 1
    outer = axes[:split]
    if out.flags.c_contiguous and is_row_major(shape, strides):
        pool.read_into(source, offset, out.reshape(-1).view(np.uint8).data)
        return
    sizes = [shape[axis] for axis in outer]
    if math.prod(sizes) * length * itemsize > most and (widest := max(shape)) > 1:
        axis, half = shape.index(widest), widest // 2
        low, high = np.split(out, [half], axis)
        _read(pool, source, offset, strides, low, most)
        _read(pool, source, offset + half * strides[axis] * itemsize, strides, high, most)
        return
    held = np.empty((*sizes, length), out.dtype)
    data, step = held.reshape(-1).view(np.uint8).data, length * itemsize
    steps = [[at * strides[axis] * itemsize for at in range(shape[axis])] for axis in outer]
    with pool.reader(source) as reader:
        for row, place in enumerate(itertools.product(*steps)):
            reader.read_into(offset + sum(place), data[row * step : (row + 1) * step])
    held_strides = dict(zip(outer, held.strides, strict=False))
    out[...] = np.lib.stride_tricks.as_strided(
        held,
        shape,
        [held_strides.get(axis, strides[axis] * itemsize) for axis in range(out.ndim)],
    )


def unpack_codes(packed: npt.NDArray[np.uint8], dtype: DType) -> npt.NDArray[np.uint8]:
    """One code per byte from packed elements of 4 or 6 bits, the first in the lowest bits."""
    if dtype.bits == 4:
        return np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)
    low, middle, high = packed.reshape(-1, 3).T
    codes = [low, low >> 6 | middle << 2, middle >> 4 | high << 4, high >> 2]
    return np.bitwise_and(np.stack(codes, axis=1).reshape(-1), 63, dtype=np.uint8)


def read_rows(checkpoint: Checkpoint, tensor: Tensor, index: Index) -> Array:
    """``tensor[index]``: a slice along the first dimension reads only its own bytes.

    Raises IndexError as NumPy does, and for a first index that is not a slice, an integer or
    ``...``.
    """
    spec = tensor.spec
    indices = index if isinstance(index, tuple) else (index,)
    first = indices[0] if indices else Ellipsis
    rows = spec.shape[0] if spec.shape else 1
    start, stop = 0, rows
    if spec.shape and isinstance(first, slice):
        if first.step in (None, 1):
            start, stop, _ = first.indices(rows)
            stop = max(start, stop)
            indices = (slice(None), *indices[1:])
    elif spec.shape and isinstance(first, (int, np.integer)) and not isinstance(first, bool):
        row = int(first) + (rows if first < 0 else 0)
        if not 0 <= row < rows:
            raise IndexError(f"{spec.name}: row {first} of {rows}")
        start, stop = row, row + 1
        indices = (0, *indices[1:])
    elif first is not Ellipsis:
        raise IndexError(f"{spec.name}: index with a slice, an integer or ...")
    inner = math.prod(spec.shape[1:])
    flat = _elements(checkpoint, tensor, start * inner, stop * inner)
    read: Array = flat.reshape((stop - start, *spec.shape[1:])[: len(spec.shape)])
    return read[indices]


def _elements(checkpoint: Checkpoint, tensor: Tensor, start: int, stop: int) -> Array:
    """The row-major elements ``[start, stop)``; narrower than a byte: one code per byte."""
    dtype = tensor.spec.dtype
    # Eight elements fill whole bytes, whatever their size.
    head = start // 8 * 8 if dtype.bits % 8 else start
    tail = min(-(-stop // 8) * 8, tensor.spec.numel) if dtype.bits % 8 else stop
    raw = bytearray(dtype.nbytes(tail - head) if stop > start else 0)
    with Pool() as pool:
        checkpoint.read_into(tensor, head, head if stop <= start else tail, memoryview(raw), pool)
    if dtype.bits % 8:
        codes = unpack_codes(np.frombuffer(raw, np.uint8), dtype)
        return codes[start - head :][: max(0, stop - start)].view(dtype.numpy())
    return np.frombuffer(raw, dtype.numpy())
