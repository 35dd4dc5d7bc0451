"""Averages moved towards values by fused calls, whatever the dtypes and devices of the two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

Move = Callable[[list[Tensor], list[Tensor]], None]
"""Moves averages towards values, in place; both lists have one dtype and device."""

CHUNK = 1 << 19
"""Elements that are converted or subtracted at a time: so much stays in a processor's cache."""
FAR_CHUNK = 1 << 24
"""The same where a device other than the processor takes part, where a call costs more."""


def lerp(averages: list[Tensor], values: list[Tensor], weight: float) -> None:
    """``a <- a + weight (w - a)``; with weight 1 a copy, also of what is not finite."""
    if weight == 1:
        torch._foreach_copy_(averages, values)
    else:
        torch._foreach_lerp_(averages, values, weight)


def running_mean(averages: list[Tensor], values: list[Tensor], n: int) -> None:
    """``a <- a + (w - a) / (n + 1)``: torch's AveragedModel does it so on the processor. It takes
    memory for the differences."""
    differences = torch._foreach_sub(values, averages)
    torch._foreach_div_(differences, n + 1)
    torch._foreach_add_(averages, differences)


def move_all(
    move: Move, averages: list[Tensor], values: list[Tensor], *, chunked: bool = False
) -> None:
    """``move`` averages of one dtype and device towards values of one, in one call.

    Where the two differ, and with ``chunked``, in parts of limited size: values are converted part
    by part, so that no second copy of a model is made. The bits do not depend on it.
    """
    if not averages:
        return
    average, value = averages[0], values[0]
    alike = average.device == value.device and average.dtype == value.dtype
    if alike and not chunked:
        move(averages, values)
        return
    near = average.device.type == value.device.type == "cpu"
    for ours, theirs in _chunks(averages, values, CHUNK if near else FAR_CHUNK):
        move(ours, theirs if alike else _like(ours, theirs))


def move_buffers(move: Move, averages: list[Tensor], values: list[Tensor]) -> None:
    """As :func:`move_all`; what is equal stays, as the -inf of a mask, and where no number would
    be left it is the model's: an observer starts with the range from inf to -inf."""
    before = [average.clone() for average in averages]
    move_all(move, averages, values)
    for average, old, value in zip(averages, before, values, strict=True):
        now = value.to(old.device, old.dtype)
        average.copy_(torch.where((old == now) | ~average.isfinite(), now, average))


def _chunks(
    averages: Sequence[Tensor], values: Sequence[Tensor], limit: int
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Both lists in stretches of up to ``limit`` elements. Large tensors come in pieces, whole only
    where they are not contiguous."""
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    elements = 0
    for average, value in zip(averages, values, strict=True):
        pieces: Iterable[tuple[Tensor, Tensor]] = ((average, value),)
        if average.numel() > limit and average.is_contiguous() and value.is_contiguous():
            a, b = average.view(-1), value.view(-1)
            starts = range(0, average.numel(), limit)
            pieces = ((a[start : start + limit], b[start : start + limit]) for start in starts)
        for own, other in pieces:
            if ours and elements + own.numel() > limit:
                yield ours, theirs
                ours, theirs, elements = [], [], 0
            ours.append(own)
            theirs.append(other)
            elements += own.numel()
    yield ours, theirs


def _like(averages: list[Tensor], values: list[Tensor]) -> list[Tensor]:
    """The values in the dtype and on the device of the averages."""
    source = values[0].device
    leaving = source.type == "cuda" and averages[0].device.type == "cpu"
    made = [torch.empty_like(average, pin_memory=leaving) for average in averages]
    torch._foreach_copy_(made, values, non_blocking=True)
    if leaving:
        # The processor must not read what is still on its way.
        torch.cuda.current_stream(source).synchronize()
    return made
