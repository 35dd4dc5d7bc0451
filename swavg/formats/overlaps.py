"""Which tensors of a file lie in each other, overlap, or leave gaps."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from swavg.formats.strides import row_major_strides, storage_order
from swavg.formats.tensors import Columns, Form

_MOST_LOOSE = 16 << 20
"""Bytes, at most, that are made beforehand, as views overlap there or leave gaps, and those of the
views."""

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
