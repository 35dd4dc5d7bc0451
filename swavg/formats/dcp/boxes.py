"""The boxes of tensors, in columns; and whether they tile a tensor: each element in one of them,
and none outside."""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from swavg.formats.tensors import Box, Shape, Tensor, TensorSpec

_MAX_CORNERS = 4_000_000


@dataclass(frozen=True, eq=False, slots=True)
class BoxColumns:
    """Boxes without an object for each; ``strides`` are those of boxes that are not row-major."""

    starts: Sequence[Shape]
    shapes: Sequence[Shape]
    sources: array[int]
    offsets: array[int]
    strides: Mapping[int, Shape]

    def tensor(self, of: tuple[TensorSpec, int, int]) -> Tensor:
        """The tensor of this spec, from its first box to where they end."""
        spec, first, stop = of
        own = slice(first, stop)
        columns = self.sources[own], self.offsets[own], self.starts[own], self.shapes[own]
        strides = map(self.strides.get, range(first, stop))
        return Tensor(spec, tuple(map(Box, *columns, strides)), spec.shape)


def fault(shape: Shape, boxes: Sequence[tuple[Shape, Shape]]) -> str | None:
    """What is wrong with boxes (where each starts, and its shape) in words; None if they tile.

    The function that counts how many boxes an element is in is known by its mixed difference,
    which is not zero at corners of boxes only: it must be that of the whole tensor.
    """
    for start, extent in boxes:
        if not len(start) == len(extent) == len(shape):
            return "a chunk has another number of dimensions"
        for first, count, size in zip(start, extent, shape, strict=True):
            if first + count > size:
                return "a chunk reaches beyond it"
    if len(boxes) == 1 and boxes[0][1] == shape:
        return None
    # Nothing is cut along the others.
    cut = [
        axis for axis, size in enumerate(shape) if {extent[axis] for _, extent in boxes} != {size}
    ]
    if len(cut) == 1 and _in_a_row(cut[0], shape, boxes):
        return None
    if len(boxes) << len(cut) > _MAX_CORNERS:
        return "it is cut into too many chunks"
    # By text, whose hash no file can choose.
    corners: dict[str, int] = {}
    whole = (0,) * len(shape), shape
    for value, (start, extent) in (*((1, box) for box in boxes), (-1, whole)):
        if 0 in extent:
            continue
        ends = [(start[axis], start[axis] + extent[axis]) for axis in cut]
        for sides in itertools.product((0, 1), repeat=len(cut)):
            corner = str([pair[side] for pair, side in zip(ends, sides, strict=True)])
            corners[corner] = corners.get(corner, 0) + value * (-1) ** sum(sides)
    if not any(corners.values()):
        return None
    held, numel = sum(math.prod(extent) for _, extent in boxes), math.prod(shape)
    if held < numel:
        return f"its chunks leave out {numel - held:,} of {numel:,} elements"
    return "its chunks overlap"


def _in_a_row(axis: int, shape: Shape, boxes: Sequence[tuple[Shape, Shape]]) -> bool:
    """Whether boxes that are cut along one axis follow each other from end to end."""
    at = 0
    for first, count in sorted((start[axis], extent[axis]) for start, extent in boxes):
        if count and first != at:
            return False
        at += count
    return at == shape[axis]
