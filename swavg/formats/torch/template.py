"""Writing a torch file as a template has it: other bytes in its tensors, all else byte for byte."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeVar

from swavg.formats.checkpoint import Columns, Form, Shape
from swavg.formats.gather import row_major_strides
from swavg.formats.layout import Kept, WriteRequest

_MOST_LOOSE = 16 << 20
"""Bytes, at most, that are made beforehand, as views overlap there or leave gaps, and those of the
views."""

Place = tuple[int, int]
"""Offset and form of a tensor, as columns have them."""
Stretch = Mapping[Place, int | None]
"""Tensors that overlap, or one with gaps, with their numbers; None: it stays the template's."""


class CannotKeep(Exception):
    """Why the structure of a template cannot be kept, in words."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """Tensor ``number`` goes to ``offset`` of the template's file, its axes in this ``order``."""

    offset: int
    nbytes: int
    number: int
    order: Shape | None

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


@dataclass(frozen=True, slots=True)
class Edit:
    """``nbytes`` at ``offset`` of the template's file, for which ``data`` stands in the output."""

    offset: int
    nbytes: int
    data: bytes

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


_offset = attrgetter("offset")
Item = TypeVar("Item", Replacement, Edit)


def storage_order(shape: Shape, strides: Shape) -> Shape | None:
    """The axes of a dense view from the slowest to the fastest; None if it has holes or repeats."""
    axes = sorted(range(len(shape)), key=lambda axis: (-strides[axis], axis))
    # Axes of one element go first: they have no place of their own.
    axes.sort(key=lambda axis: shape[axis] != 1)
    sizes = tuple(shape[axis] for axis in axes)
    packed = row_major_strides(sizes)
    if any(
        size != 1 and strides[axis] != step
        for axis, size, step in zip(axes, sizes, packed, strict=True)
    ):
        return None
    return tuple(axes)


def replacements(request: WriteRequest) -> tuple[list[Replacement], list[Stretch]]:
    """Where the tensors go, in the order of the file, and those that cannot go there one by one.
    CannotKeep if the template's structure cannot be kept. A tensor that is the template's own is
    left in place."""
    specs, table = request.specs, request.template.tensors
    columns, path = table.columns, request.template.path
    tied = {name: group for group in request.ties for name in group}
    first_at: dict[Place, int] = {}
    covered = bytearray(len(table))
    for number, name in enumerate(specs.names):
        at = table.index.get(name)
        if at is None:
            raise CannotKeep(f"'{name}' is not in {path}")
        covered[at] = 1
        dtype, shape = specs.forms[specs.form[number]]
        was, had, _ = table.form_of(at)
        if dtype is not was:
            raise CannotKeep(f"'{name}' is {was} there and becomes {dtype}")
        if shape != had:
            raise CannotKeep(f"'{name}' has another shape there")
        if 0 in shape:
            continue
        first = first_at.setdefault((columns.offset[at], columns.form[at]), number)
        same = request.unchanged[first] and request.unchanged[number]
        if first != number and not same and specs.names[first] not in tied.get(name, ()):
            other = specs.names[first]
            raise CannotKeep(f"'{name}' is tied to '{other}' there, and no longer the same")
    for at, name in enumerate(columns.names):
        if not covered[at] and (columns.offset[at], columns.form[at]) not in first_at:
            raise CannotKeep(f"'{name}' is left out")
    changed = {place: n for place, n in first_at.items() if not request.unchanged[n]}
    inside: set[Place] = set()
    try:
        return _placed(request, changed), []
    except CannotKeep as problem:
        reason = problem
    if request.alike and (inside := _inside_others(columns, changed)):
        try:
            return _placed(request, changed, inside), []
        except CannotKeep as problem:
            reason = problem
    stretches = _stretches(columns, changed, inside)
    if request.compute is None or stretches is None:
        raise reason
    return _placed(request, changed, inside.union(*stretches)), stretches


def _placed(
    request: WriteRequest,
    changed: Mapping[Place, int],
    inside: Collection[Place] = (),
) -> list[Replacement]:
    """Where the ``changed`` tensors (by offset and form) go, but for those ``inside`` others."""
    specs, table = request.specs, request.template.tensors
    wanted = []
    for (offset, form), number in changed.items():
        if (offset, form) in inside:
            continue
        dtype, shape, strides = table.columns.forms[form]
        axes = tuple(range(len(shape)))
        order = axes if strides is None else storage_order(shape, strides)
        if order is None:
            name = specs.names[number]
            raise CannotKeep(f"'{name}' does not fill its part of the storage without gaps")
        nbytes = dtype.nbytes(math.prod(shape))
        turned = order if order != axes else None
        wanted.append(Replacement(table.base + offset, nbytes, number, turned))
    wanted.sort(key=attrgetter("offset"))
    _refuse_clashes(request, {replacement.offset: replacement for replacement in wanted}, inside)
    return wanted


def hull(form: Form) -> int:
    """The bytes from the first element of a tensor to the end of its last one."""
    dtype, shape, strides = form
    steps = row_major_strides(shape) if strides is None else strides
    elements = 1 + sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
    return 0 if 0 in shape else elements * dtype.itemsize


def _stretches(
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


def _inside_others(columns: Columns, changed: Collection[Place]) -> set[Place]:
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


def _refuse_clashes(
    request: WriteRequest,
    wanted: Mapping[int, Replacement],
    inside: Collection[Place],
) -> None:
    """CannotKeep if a replaced tensor shares some of its bytes with a different view, but for
    those ``inside`` one."""
    table = request.template.tensors
    columns = table.columns
    hulls = list(map(hull, columns.forms))
    distinct: dict[Place, str] = {}
    for name, offset, form in zip(columns.names, columns.offset, columns.form, strict=True):
        if hulls[form] and (offset, form) not in inside:
            distinct.setdefault((table.base + offset, form), name)
    end_of_any = end_of_replaced = 0
    for (offset, form), name in sorted(distinct.items()):
        here = wanted.get(offset)
        if offset < (end_of_any if here is not None else end_of_replaced):
            raise CannotKeep(f"'{name}' shares a part of its bytes with another tensor")
        end_of_any = max(end_of_any, offset + hulls[form])
        if here is not None:
            end_of_replaced = max(end_of_replaced, here.end)


def spliced(
    start: int,
    nbytes: int,
    at: int,
    replaced: Sequence[Replacement],
    edits: Sequence[Edit] = (),
) -> tuple[list[tuple[int, int]], list[Kept], list[tuple[int, bytes]]]:
    """What stands in the output from ``at`` on for the template's ``nbytes`` from ``start`` on:
    tensors with their offsets, what is kept between, and edits with theirs. ``replaced`` and
    ``edits`` are sorted; none crosses the ends."""
    places: list[tuple[int, int]] = []
    kept: list[Kept] = []
    bodies: list[tuple[int, bytes]] = []
    position, end = start, start + nbytes
    here: Sequence[Replacement | Edit] = within(replaced, start, end)
    if edits:
        here = sorted((*here, *within(edits, start, end)), key=_offset)
    for each in here:
        if each.offset > position:
            kept.append(Kept(at, position, each.offset - position))
            at += each.offset - position
        if isinstance(each, Edit):
            bodies.append((at, each.data))
            at += len(each.data)
        else:
            places.append((each.number, at))
            at += each.nbytes
        position = each.end
    if position < end:
        kept.append(Kept(at, position, end - position))
    return places, kept, bodies


def within(items: Sequence[Item], start: int, end: int) -> Sequence[Item]:
    """Those, of sorted ones, of the bytes from ``start`` to ``end`` of the template's file."""
    first = bisect_left(items, start, key=_offset)
    return items[first : bisect_left(items, end, first, key=_offset)]
