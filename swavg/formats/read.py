"""Reading tensors: row-major ranges of possibly strided views, a bounded piece at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from swavg.errors import RequestError
from swavg.formats.base import Checkpoint, FilePool, InputFile, Tensor
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
    """``tensor[index]``: a slice along the first dimension reads only its own bytes."""
    spec, extent = tensor.spec, tensor.extent
    first, *others = index if isinstance(index, tuple) else (index,)
    shape = spec.shape
    start, stop, squeeze, step = 0, shape[0] if shape else 1, False, 1
    if shape and isinstance(first, slice):
        start, stop, step = first.indices(shape[0])
        if step != 1:
            first, start, stop = first, 0, shape[0]
        else:
            stop = max(start, stop)
    elif shape and isinstance(first, (int, np.integer)):
        row = int(first) + (shape[0] if first < 0 else 0)
        if not 0 <= row < shape[0]:
            raise IndexError(f"{spec.name}: row {first} of {shape[0]}")
        start, stop, squeeze = row, row + 1, True
    elif first is not Ellipsis:
        raise IndexError(f"{spec.name}: index with a slice, an integer or ...")
    inner = math.prod(shape[1:]) if shape else 1
    shape_read = (stop - start, *shape[1:]) if shape else ()
    numel = (stop - start) * inner
    dtype = spec.dtype
    file = checkpoint.files[extent.file]
    with FilePool() as pool:
        if dtype.bits % 8:
            head = start * inner * dtype.bits
            if head % 8 or numel * dtype.bits % 8:
                raise RequestError(f"{spec.name}: these rows of {dtype} do not fill whole bytes")
            raw = pool.read(file, extent.offset + head // 8, dtype.nbytes(numel))
            array = unpack_codes(np.frombuffer(raw, np.uint8), dtype).view(dtype.numpy())
        else:
            raw = bytearray(numel * dtype.itemsize)
            if extent.strides is None:
                offset = extent.offset + start * inner * dtype.itemsize
                pool.read_into(file, offset, memoryview(raw))
            elif numel:
                gather(pool, file, tensor, start * inner, stop * inner, memoryview(raw))
            array = np.frombuffer(raw, dtype.numpy())
    array = array.reshape(shape_read)
    if squeeze:
        array = array[0]
    elif shape and isinstance(first, slice) and step != 1:
        array = array[first]
    rest = (slice(None),) * (not squeeze and bool(shape) and first is not Ellipsis) + tuple(others)
    return array[(Ellipsis, *others)] if first is Ellipsis and others else array[rest]
