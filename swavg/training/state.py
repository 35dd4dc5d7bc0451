"""A model's own tensors, by the names that they have without wrappers, and where they lie."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from swavg.formats.read import boxes
from swavg.training.wrapped import local, modules, settle


def own_tensors(model: nn.Module, *, buffers: bool = True) -> dict[str, Tensor]:
    """The parameters of a model and, with ``buffers``, its persistent buffers: themselves, not
    copies, in the order of the state dict, a tied one under each of its names.

    Raises RequestError for a model whose parameters are hidden in flat ones (FSDP1).
    """
    # What FSDP2 has gathered for a forward pass would be thrown away after it.
    settle(model)
    found: dict[str, Tensor] = {}
    for prefix, module in modules(model):
        dot = f"{prefix}." if prefix else ""
        held = dict(module._parameters)
        if buffers:
            for name, buffer in module._buffers.items():
                if name not in module._non_persistent_buffers_set:
                    held[name] = buffer  # type: ignore[assignment]
        found |= {f"{dot}{name}": value for name, value in held.items() if value is not None}
    return found


@dataclass(frozen=True, slots=True)
class Rows:
    """This rank's part of a tensor that is sharded by rows: ``part`` holds the elements from
    ``first`` on, in the row-major order of the whole."""

    part: Tensor
    first: int


def own_rows(tensor: Any) -> Rows | None:
    """This rank's rows of a DTensor; None if it is sharded otherwise."""
    part = local(tensor)
    shape, mesh = tuple(tensor.shape), tensor.device_mesh
    sharding = [axis for axis, placed in enumerate(tensor.placements) if not placed.is_replicate()]
    if not sharding:
        return Rows(part, 0) if tuple(part.shape) == shape else None
    (axis, *others) = sharding
    placement = tensor.placements[axis]
    # By its very class: there are shards that are cut otherwise.
    if others or type(placement).__name__ != "Shard" or placement.dim != 0 or not shape:
        return None
    # As torch.chunk cuts: parts of equal size, the last ones shorter or empty.
    rows = -(-shape[0] // mesh.size(axis))
    first = min(rows * mesh.get_local_rank(axis), shape[0])
    if tuple(part.shape) != (max(0, min(rows, shape[0] - first)), *shape[1:]):
        return None
    return Rows(part, first * math.prod(shape[1:]))


def writer(target: Tensor) -> Callable[[int, int, Tensor], None]:
    """What writes row-major elements ``[start, stop)`` of a tensor."""
    if not target.is_contiguous():
        return partial(_scatter, target)
    flat = target.detach().view(-1)
    if target.device.type != "cpu":

        def copy(start: int, stop: int, made: Tensor) -> None:
            flat[start:stop].copy_(made)

        return copy
    # torch copies with all its threads, and waking them takes longer than copying a block that is
    # in the cache. Of a copy past torch, autograd must be told: by a change of nothing.
    flat[:0].zero_()
    raw, size = flat.view(torch.uint8).numpy(), flat.element_size()

    def put(start: int, stop: int, made: Tensor) -> None:
        raw[start * size : stop * size] = made.to(target.dtype).view(torch.uint8).numpy()

    return put


def _scatter(target: Tensor, start: int, stop: int, made: Tensor) -> None:
    """Write row-major elements of a tensor that lies otherwise in memory (channels last, say)."""
    done = 0
    for box in boxes(tuple(target.shape), start, stop):
        part = target.detach()
        for dimension, (first, count) in enumerate(box):
            part = part.narrow(dimension, first, count)
        part.copy_(made[done : done + part.numel()].view(part.shape))
        done += part.numel()
