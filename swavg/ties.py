"""Tied tensors: names that are one tensor in every checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from swavg.formats.base import Checkpoint, Tensor
from swavg.formats.files import FilePool
from swavg.matching import by_canonical_name, canonical


def confirmed_ties(checkpoints: Sequence[Checkpoint]) -> list[tuple[str, ...]]:
    """Groups of canonical names that are one tensor in every checkpoint that has them.

    A tie that one checkpoint declares (a .pt, by sharing storage) is looked up in the others;
    where a format cannot tell, the bytes are compared.
    """
    names = [by_canonical_name(list(checkpoint.tensors)) for checkpoint in checkpoints]
    candidates: dict[tuple[str, ...], None] = {}
    taken: set[str] = set()
    for checkpoint in reversed(checkpoints):
        for group in checkpoint.ties:
            found = tuple(canonical(name) for name in group)
            if taken.isdisjoint(found):
                candidates[found] = None
                taken.update(found)
    with FilePool() as pool:
        return [
            group
            for group in candidates
            if all(
                _is_tied(pool, checkpoint, [mapping[name] for name in group if name in mapping])
                for checkpoint, mapping in zip(checkpoints, names, strict=True)
            )
        ]


def _is_tied(pool: FilePool, checkpoint: Checkpoint, names: Sequence[str]) -> bool:
    tensors = [checkpoint.tensors[name] for name in names]
    return all(_same_bytes(pool, checkpoint, tensors[0], other) for other in tensors[1:])


def _same_bytes(pool: FilePool, checkpoint: Checkpoint, one: Tensor, other: Tensor) -> bool:
    a, b = one.extent, other.extent
    if (one.spec.dtype, one.spec.shape) != (other.spec.dtype, other.spec.shape):
        return False
    if a == b:
        return True
    if a.strides is not None or b.strides is not None:
        return False
    step = 1 << 20
    return all(
        pool.read(checkpoint.files[a.file], a.offset + start, min(step, a.nbytes - start))
        == pool.read(checkpoint.files[b.file], b.offset + start, min(step, a.nbytes - start))
        for start in range(0, a.nbytes, step)
    )
