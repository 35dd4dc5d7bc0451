"""Reading tensors: row-major ranges of possibly strided views, a bounded piece at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from swavg.formats.base import Checkpoint, Tensor
from swavg.formats.files import FilePool, InputFile
from swavg.packing import unpack_codes

# A strided box is read as its hull if that is at most this many times larger; else row by row.
_HULL = 4


def row_major_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Elements per step of each dimension of a packed row-major tensor."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def boxes(shape: tuple[int, ...], start: int, stop: int) -> list[tuple[tuple[int, int], ...]]:
    """Cut the row-major range ``[start, stop)`` into boxes: per dimension a ``(first, count)``."""
    if start >= stop:
        return []
    if not shape:
        return [()]
    inner = math.prod(shape[1:])
    first, last = start // inner, (stop - 1) // inner
    rest = shape[1:]
    if first == last:
        return [
            ((first, 1), *box) for box in boxes(rest, start - first * inner, stop - first * inner)
        ]
    found: list[tuple[tuple[int, int], ...]] = []
    if start != first * inner:
        found += [((first, 1), *box) for box in boxes(rest, start - first * inner, inner)]
        first += 1
    whole = stop // inner
    if whole > first:
        found.append(((first, whole - first), *((0, extent) for extent in rest)))
    if stop != whole * inner:
        found += [((whole, 1), *box) for box in boxes(rest, 0, stop - whole * inner)]
    return found


def gather(
    pool: FilePool, file: InputFile, tensor: Tensor, start: int, stop: int, out: memoryview
) -> None:
    """Read elements ``[start, stop)`` (row-major) of a strided view into ``out``, packed.

    Memory beyond ``out`` stays within a small multiple of it.
    """
    spec, extent = tensor.spec, tensor.extent
    if extent.strides is None:
        raise ValueError("a packed tensor needs no gathering")
    unit = np.dtype((np.void, spec.dtype.itemsize))
    target = np.frombuffer(out, unit)
    done = 0
    for box in boxes(spec.shape, start, stop):
        count = math.prod(size for _, size in box)
        piece = target[done : done + count].reshape(tuple(size for _, size in box))
        offset = sum(first * step for (first, _), step in zip(box, extent.strides, strict=True))
        _read_box(pool, file, extent.offset, offset, extent.strides, piece)
        done += count


def _read_box(
    pool: FilePool,
    file: InputFile,
    base: int,
    offset: int,
    strides: tuple[int, ...],
    out: np.ndarray[Any, Any],
) -> None:
    itemsize = out.dtype.itemsize
    hull = 1 + sum((size - 1) * step for size, step in zip(out.shape, strides, strict=True))
    widest = max(range(out.ndim), key=lambda axis: strides[axis] * (out.shape[axis] > 1), default=0)
    if hull <= _HULL * out.size or out.size == 1:
        data = pool.read(file, base + offset * itemsize, hull * itemsize)
        view = np.lib.stride_tricks.as_strided(
            np.frombuffer(data, out.dtype), out.shape, tuple(step * itemsize for step in strides)
        )
        out[...] = view
        return
    inner = strides[:widest] + strides[widest + 1 :]
    for index in range(out.shape[widest]):
        part = out[(slice(None),) * widest + (index,)]
        _read_box(pool, file, base, offset + index * strides[widest], inner, part)


def read_rows(checkpoint: Checkpoint, tensor: Tensor, index: Any) -> np.ndarray[Any, Any]:
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
    flat = _elements(checkpoint.files[tensor.extent.file], tensor, start * inner, stop * inner)
    read: np.ndarray[Any, Any] = flat.reshape((stop - start, *spec.shape[1:])[: len(spec.shape)])
    return read[indices]


def _elements(file: InputFile, tensor: Tensor, start: int, stop: int) -> np.ndarray[Any, Any]:
    """The row-major elements ``[start, stop)`` of ``tensor``."""
    dtype, extent = tensor.spec.dtype, tensor.extent
    with FilePool() as pool:
        if dtype.bits % 8:
            # Eight elements fill whole bytes, whatever their size.
            head, tail = start // 8 * 8, min(-(-stop // 8) * 8, tensor.spec.numel)
            offset, size = dtype.nbytes(head), dtype.nbytes(tail - head) if stop > start else 0
            packed = np.frombuffer(pool.read(file, extent.offset + offset, size), np.uint8)
            codes = unpack_codes(packed, dtype)[start - head :][: stop - start]
            return codes.view(dtype.numpy())
        raw = bytearray((stop - start) * dtype.itemsize)
        if extent.strides is None:
            pool.read_into(file, extent.offset + start * dtype.itemsize, memoryview(raw))
        elif raw:
            gather(pool, file, tensor, start, stop, memoryview(raw))
        return np.frombuffer(raw, dtype.numpy())
