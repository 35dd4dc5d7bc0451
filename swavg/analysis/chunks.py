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
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from swavg.dtypes import DType
from swavg.engine.kernels.floats import widen
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.gather import unpack_codes
from swavg.formats.tensors import Tensor
from swavg.storage.pool import Pool

Array = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

OnProgress = Callable[[int, int], None]
"""Called with the bytes read so far, and in all."""

CHUNK = 1 << 17
"""Real numbers per chunk: 1 MiB as float64, a few of which fit the processor's cache."""

# More would take more memory than is promised.
_MOST_THREADS = 4

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def in_order(
    pieces: Iterable[Piece], work: Callable[[Piece], Result]
) -> Iterator[tuple[Piece, Result]]:
    """``work`` of every piece by several threads; the results in order."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    threads = min(_MOST_THREADS, processors)
    pending: deque[tuple[Piece, Future[Result]]] = deque()
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


def ranges(*tensors: Tensor) -> Iterator[tuple[int, int]]:
    """The elements of tensors of one shape in chunks; none if they are empty."""
    dtypes = [tensor.spec.dtype for tensor in tensors]
    step = CHUNK // 2 if any(dtype.kind == "complex" for dtype in dtypes) else CHUNK
    if any(dtype.bits % 8 for dtype in dtypes):
        # Eight elements fill whole bytes, whatever their size.
        step = max(8, step // 8 * 8)
    step, numel = max(1, step), tensors[0].spec.numel
    for start in range(0, numel, step):
        yield start, min(start + step, numel)


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.by_slot: dict[str, Bytes] = {}


_buffers = _Buffers()


def _buffer(slot: str, nbytes: int) -> Bytes:
    buffer = _buffers.by_slot.get(slot)
    if buffer is None or buffer.size < nbytes:
        buffer = _buffers.by_slot[slot] = np.empty(nbytes, np.uint8)
    return buffer[:nbytes]


def scratch(slot: str, count: int) -> Array:
    """A buffer of this thread, valid until its ``slot`` is asked for again.

    Fresh memory for every chunk would cost several times the arithmetic, in page faults.
    """
    return _buffer(slot, 8 * count).view(np.float64)


def read_chunk(
    pool: Pool, checkpoint: Checkpoint, tensor: Tensor, start: int, stop: int, slot: str = "raw"
) -> Bytes:
    """The packed bytes of row-major elements ``[start, stop)``, in a scratch buffer."""
    raw = _buffer(slot, tensor.spec.dtype.nbytes(stop - start))
    checkpoint.read_into(tensor, start, stop, raw.data, pool)
    return raw


def wide(raw: Bytes, dtype: DType, slot: str = "wide") -> Array:
    """The values in float64, in a scratch buffer; parts of complex ones by turns."""
    part = dtype.part
    values = scratch(slot, raw.size * 8 // part.bits)
    if dtype.kind == "bool":
        np.copyto(values, raw != 0)
    elif dtype.kind == "integer":
        np.copyto(values, raw.view(dtype.numpy()), casting="unsafe")
    elif part.bits < 8:
        np.copyto(values, unpack_codes(raw, part).view(part.numpy()), casting="unsafe")
    elif part.bits > 16:
        widen(raw, part, values)
    else:
        # The kernel is fastest into float32, which holds all of these exactly.
        narrow = _buffer("narrow", 4 * values.size).view(np.float32)
        widen(raw, part, narrow)
        np.copyto(values, narrow)
    return values


def summed(a: Array, b: Array) -> float:
    """The sum of a b, added pairwise; without BLAS, whose order depends on the machine."""
    return float(np.multiply(a, b, out=scratch("product", a.size)).sum())


def all_finite(values: Array) -> bool:
    # A NaN comes through both.
    return math.isfinite(float(values.min())) and math.isfinite(float(values.max()))


def check(*checkpoints: Checkpoint) -> None:
    """InputError if one changed while it was read."""
    for checkpoint in checkpoints:
        for source in checkpoint.sources:
            source.check()
