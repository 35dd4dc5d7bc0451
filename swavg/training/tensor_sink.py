"""The memory of a model's tensors as a file that a plan writes."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor

from swavg.formats.strides import regions
from swavg.storage.sinks import Buffer
from swavg.training.wrapped import is_sharded, local, own_rows, part_of

_SMALL = 1 << 15
"""Elements up to which tensors are written many at once."""

Write = Callable[[int, Tensor], None]
"""Put elements at this place of a tensor, in row-major order."""


class TensorSink:
    """Takes the bytes of tensors that lie end to end, packed and row-major: tensor ``i`` from
    ``offsets[i]`` on, in ``dtypes[i]``; none is empty.

    Bytes come in ascending order, of one dtype at a time, from one thread. Device, strides and own
    dtype of a tensor are seen to here. Of a DTensor this rank's part is kept.
    """

    forks = False
    fds: tuple[int, ...] = ()

    def __init__(
        self, tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype], offsets: Sequence[int]
    ) -> None:
        self._tensors = tensors
        self._dtypes = dtypes
        self._offsets = offsets
        self._write: Write | None = None

    def pwrite(self, offset: int, data: Buffer) -> None:
        first = bisect_right(self._offsets, offset) - 1
        values = torch.frombuffer(data, dtype=self._dtypes[first])
        # Sent at once: what a transfer costs besides its bytes is nearly everything for small ones.
        values = values.to(self._tensors[first].device)
        start = (offset - self._offsets[first]) // values.element_size()
        tensors = self._tensors[first : bisect_left(self._offsets, offset + len(data))]
        sizes = [tensor.numel() for tensor in tensors]
        sizes[0] -= start
        sizes[-1] -= sum(sizes) - values.numel()
        small: list[Tensor] = []
        parts: list[Tensor] = []
        for tensor, part in zip(tensors, values.split_with_sizes(sizes), strict=True):
            if part.numel() == tensor.numel() <= _SMALL and not is_sharded(tensor):
                small.append(tensor)
                parts.append(part.view_as(tensor))
            else:
                self._put(tensor, start, part)
            start = 0
        if small:
            torch._foreach_copy_(small, parts)

    def _put(self, tensor: Tensor, start: int, part: Tensor) -> None:
        if start == 0 or self._write is None:
            self._write = _writer(tensor)
        self._write(start, part)

    def sync(self) -> None:
        """Memory is there at once."""

    def fail(self, error: BaseException) -> None:
        """Nobody waits for memory."""


def _writer(tensor: Tensor) -> Write:
    if not is_sharded(tensor):
        return _plain_writer(tensor.detach())
    whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    write_whole = _plain_writer(whole)

    def write(start: int, part: Tensor) -> None:
        write_whole(start, part)
        if start + part.numel() == whole.numel():
            local(tensor).copy_(part_of(whole, tensor))

    return write


def _plain_writer(target: Tensor) -> Write:
    if not target.is_contiguous():
        return partial(_scatter, target)
    flat = target.view(-1)
    if target.device.type != "cpu":
        return partial(_copy, flat)
    # torch copies with all its threads, and waking them takes longer than copying a block that is
    # in the cache. Of a copy past torch, autograd must be told: by a change of nothing.
    flat[:0].zero_()
    raw, size = flat.view(torch.uint8).numpy(), flat.element_size()

    def write(start: int, part: Tensor) -> None:
        end = start + part.numel()
        raw[start * size : end * size] = part.to(target.dtype).view(torch.uint8).numpy()

    return write


def _copy(flat: Tensor, start: int, part: Tensor) -> None:
    flat[start : start + part.numel()].copy_(part)


def _scatter(target: Tensor, start: int, made: Tensor) -> None:
    """Write to a tensor that lies otherwise in memory (channels last, say)."""
    done = 0
    for region in regions(tuple(target.shape), start, start + made.numel()):
        part = target
        for dimension, (first, count) in enumerate(region):
            part = part.narrow(dimension, first, count)
        part.copy_(made[done : done + part.numel()].view(part.shape))
        done += part.numel()


def memory_of(tensor: Tensor) -> tuple[int, Tensor]:
    """What is written of a tensor: from which of its elements on, and where. That is a DTensor
    itself unless it is sharded by rows."""
    rows = own_rows(tensor) if is_sharded(tensor) else None
    return (0, tensor) if rows is None else rows


def writable(tensors: Sequence[Tensor]) -> AbstractContextManager[None]:
    """In which the tensors can be written to. Those made in inference mode only there."""
    if any(tensor.is_inference() for tensor in tensors):
        return torch.inference_mode()
    return torch.no_grad()
