"""Whether tensors hold the same."""

from __future__ import annotations

from collections.abc import Sequence

from swavg.formats.checkpoint import Checkpoint
from swavg.formats.tensors import Tensor
from swavg.storage.pool import Pool

STEP = 1 << 20
"""Bytes of each tensor that are read at once."""

InCheckpoint = tuple[Checkpoint, Tensor]


def same_elements(pool: Pool, tensors: Sequence[InCheckpoint], *, most: int | None = None) -> bool:
    """Whether tensors, or their first ``most`` bytes, are of one dtype and shape, and hold the
    same. InputError."""
    spec = tensors[0][1].spec
    if any((own.spec.dtype, own.spec.shape) != (spec.dtype, spec.shape) for _, own in tensors):
        return False
    if len({(id(checkpoint), own.boxes) for checkpoint, own in tensors}) == 1:
        return True
    # Eight elements that are narrower than a byte fill whole bytes.
    step, stop = (size * 8 // spec.dtype.bits // 8 * 8 for size in (STEP, most or 0))
    stop = spec.numel if most is None else min(spec.numel, stop)
    first, other = (bytearray(spec.dtype.nbytes(min(step, stop))) for _ in range(2))
    for start in range(0, stop, step):
        end = min(start + step, stop)
        size = spec.dtype.nbytes(end - start)
        for number, (checkpoint, own) in enumerate(tensors):
            data = other if number else first
            checkpoint.read_unchecked(own, start, end, memoryview(data)[:size], pool)
            if number and other[:size] != first[:size]:
                return False
    return True
