"""Which tensors of a file lie in each other, overlap, or leave gaps; and whether boxes tile a
tensor: each element in one of them, and none outside."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence

from swavg.formats.strides import row_major_strides, storage_order
from swavg.formats.tensors import Columns, Form, Shape

_MOST_LOOSE = 16 << 20
"""Bytes, at most, that are made beforehand, as views overlap there or leave gaps, and those of the
views."""

_MAX_CORNERS = 4_000_000
"""Corners of boxes, at most, that are counted to tell whether they tile."""

Place = tuple[int, int]
"""Offset and form of a tensor, as columns have them."""
Stretch = Mapping[Place, int | None]
"""Tensors that overlap, or one with gaps, with their numbers; None: it stays the template's."""


def hull(form: Form) -> int:
    """The bytes from the first element of a tensor to the end of its last one."""
    dtype, shape, strides = form
    steps = row_major_strides(shape) if strides is None else strides
    elements = 1 + sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
    return 0 if 0 in shape else elements * dtype.itemsize


def stretches_of(
    columns: Columns, changed: Mapping[Place, int], inside: Collection[Place]
) -> list[Stretch] | None:
    """The tensors, but for those ``inside`` others, that overlap with a ``changed`` one, or are one
    with gaps; None if that are too many bytes."""
    hulls = list(map(hull, columns.forms))
    sizes = [dtype.nbytes(math.prod(shape)) for dtype, shape, _ in columns.forms]
    places = set(zip(columns.offset, columns.form, strict=True))
    group: dict[Place, int | None] = {}
    stretches: list[Stretch] = []
    start = end = room = 0
    for place in (*sorted(places.difference(inside)), (1 << 62, -1)):
        if group and place[0] >= end:
            ((_, first), *others) = group
            _, shape, strides = columns.forms[first]
            loose = others or (strides is not None and storage_order(shape, strides) is None)
            if loose and any(number is not None for number in group.values()):
                stretches.append(group)
                room += end - start + sum(sizes[form] for _, form in group)
            group = {}
        if not group:
            start = end = place[0]
        if hulls[place[1]]:
            group[place] = changed.get(place)
            end = max(end, place[0] + hulls[place[1]])
    return stretches if room <= _MOST_LOOSE else None


def inside_others(columns: Columns, changed: Collection[Place]) -> set[Place]:
    """Places (offset and form) of averaged floats that are views of a part of another one, which
    lies without gaps: the average of that one is theirs."""
    if len(changed) < 2:
        return set()
    hulls = list(map(hull, columns.forms))
    inside = set()
    end = 0
    outer = (0, 0)
    for offset, form in sorted(changed, key=lambda place: (place[0], -hulls[place[1]], place[1])):
        dtype, shape, strides = columns.forms[form]
        of = columns.forms[outer[1]][0]
        if offset + hulls[form] <= end:
            if dtype is of and dtype.floating and (offset - outer[0]) % dtype.itemsize == 0:
                inside.add((offset, form))
        elif strides is None or storage_order(shape, strides) is not None:
            outer, end = (offset, form), offset + hulls[form]
    return inside


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
