"""Whether boxes tile a tensor: each element in one of them, and none outside."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from swavg.formats.checkpoint import Shape

_MAX_CORNERS = 4_000_000


def fault(shape: Shape, boxes: Sequence[tuple[Shape, Shape]]) -> str | None:
    """What is wrong with boxes (where each starts, and its shape) in words; None if they tile.

    The function that counts how many boxes an element is in is known by its mixed difference,
    which is not zero at corners of boxes only: it must be that of the whole tensor.
    """
    for start, extent in boxes:
        if not len(start) == len(extent) == len(shape):
            return "a chunk has another number of dimensions"
        if any(
            first + count > size for first, count, size in zip(start, extent, shape, strict=True)
        ):
            return "a chunk reaches beyond it"
    if len(boxes) == 1 and boxes[0][1] == shape:
        return None
    # Nothing is cut along the others.
    cut = [
        axis for axis, size in enumerate(shape) if any(extent[axis] != size for _, extent in boxes)
    ]
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
