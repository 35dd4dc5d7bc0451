"""Chunks of tensors as float64, computed by a few threads and combined in order.

The sizes are fixed, so that the figures are the same on every machine.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from swavg.dtypes import DType
from swavg.formats.base import Checkpoint, Tensor
from swavg.formats.files import FilePool
from swavg.formats.read import gather
from swavg.kernels.floats import widen

Array = np.ndarray[Any, Any]

OnProgress = Callable[[int, int], None]
"""Called with the bytes read so far, and in all."""

CHUNK = 1 << 17
"""Real numbers per chunk: 1 MiB as float64, a few of which fit the processor's cache."""

# More would take more memory than is promised.
_MOST_THREADS = 4
# Magnitudes whose squares, a file full of them, stay within float64.
_SMALL, _LARGE = 2.0**-400, 2.0**400

Piece = TypeVar("Piece")
Found = TypeVar("Found")


def in_order(
    pieces: Iterable[Piece], work: Callable[[Piece], Found]
) -> Iterator[tuple[Piece, Found]]:
    """``work`` of every piece by several threads; the results in order."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    threads = min(_MOST_THREADS, processors)
    pending: deque[tuple[Piece, Future[Found]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="swavg") as workers:
        try:
            for piece in pieces:
                pending.append((piece, workers.submit(work, piece)))
                if len(pending) > 2 * threads:
                    done, future = pending.popleft()
                    yield done, future.result()
            while pending:
                done, future = pending.popleft()
                yield done, future.result()
        finally:
            for _, future in pending:
                future.cancel()


def ranges(tensor: Tensor, parts: int) -> Iterator[tuple[int, int]]:
    """The elements of ``tensor`` in chunks; none if it is empty."""
    # Eight elements fill whole bytes, whatever their size.
    step = max(8, CHUNK // parts // 8 * 8) if tensor.spec.dtype.bits % 8 else CHUNK // parts
    step = max(1, step)
    for start in range(0, tensor.spec.numel, step):
        yield start, min(start + step, tensor.spec.numel)


_buffers = threading.local()


def scratch(slot: str, count: int, dtype: Any = np.float64) -> Array:
    """A buffer of this thread, valid until its ``slot`` is asked for again.

    Fresh memory for every chunk would cost several times the arithmetic, in page faults.
    """
    wanted = count * np.dtype(dtype).itemsize
    buffer: Array | None = getattr(_buffers, slot, None)
    if buffer is None or buffer.size < wanted:
        buffer = np.empty(wanted, np.uint8)
        setattr(_buffers, slot, buffer)
    return buffer[:wanted].view(dtype)


def read_chunk(
    pool: FilePool, checkpoint: Checkpoint, tensor: Tensor, start: int, stop: int, slot: str = "raw"
) -> Array:
    """The packed bytes of row-major elements ``[start, stop)``, in a scratch buffer."""
    dtype, extent = tensor.spec.dtype, tensor.extent
    raw = scratch(slot, dtype.nbytes(stop - start), np.uint8)
    file = checkpoint.files[extent.file]
    if extent.strides is None:
        pool.read_into(file, extent.offset + dtype.nbytes(start), raw.data)
    else:
        gather(pool, file, tensor, start, stop, raw.data)
    return raw


def wide(raw: Array, dtype: DType, slot: str = "wide") -> Array:
    """The values in float64, in a scratch buffer; parts of complex ones by turns."""
    part = dtype.part
    found = scratch(slot, raw.size * 8 // part.bits)
    if dtype.kind == "bool":
        np.copyto(found, raw != 0)
    elif dtype.kind == "integer":
        np.copyto(found, raw.view(dtype.numpy()), casting="unsafe")
    elif part.bits > 16:
        widen(raw, part, found)
    else:
        # The kernel is fastest into float32, which holds all of these exactly.
        narrow = scratch("narrow", found.size, np.float32)
        widen(raw, part, narrow)
        np.copyto(found, narrow)
    return found


def tame(values: Array, dtype: DType | None = None) -> tuple[Array, int]:
    """``values`` and 0; or, if squares could leave float64, ``values * 2**-e`` and e. Finite."""
    if not values.size or (dtype is not None and dtype.part.name != "float64"):
        return values, 0
    peak = max(abs(float(values.max())), abs(float(values.min())))
    if peak == 0 or _SMALL < peak < _LARGE:
        return values, 0
    exponent = math.frexp(peak)[1]
    return np.ldexp(values, -exponent), exponent


def scaled(value: float, exponent: int) -> float:
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.copysign(math.inf, value)


def all_finite(values: Array) -> bool:
    # A NaN comes through both.
    return math.isfinite(float(values.min())) and math.isfinite(float(values.max()))


def check(*checkpoints: Checkpoint) -> None:
    for checkpoint in checkpoints:
        for file in checkpoint.files:
            file.check()
