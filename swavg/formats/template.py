"""Writing a torch file as a template has it: other bytes in its tensors, all else byte for byte."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from swavg.formats.checkpoint import Columns, Shape
from swavg.formats.gather import row_major_strides
from swavg.formats.layout import Kept, WriteRequest


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


def replacements(request: WriteRequest) -> list[Replacement]:
    """Where the tensors go, in the order of the file. CannotKeep if the template's structure
    cannot be kept. A tensor that is the template's own is left in place."""
    specs, table = request.specs, request.template.tensors
    columns, path = table.columns, request.template.path
    tied = {name: group for group in request.ties for name in group}
    first_at: dict[tuple[int, int], int] = {}
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
    try:
        return _placed(request, changed)
    except CannotKeep:
        inside = _inside_others(columns, changed) if request.alike else set()
        if not inside:
            raise
    return _placed(request, changed, inside)


def _placed(
    request: WriteRequest,
    changed: Mapping[tuple[int, int], int],
    inside: Collection[tuple[int, int]] = (),
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


def _hulls(columns: Columns) -> list[int]:
    """The bytes from the first element of a tensor to the end of its last one, for each form."""
    hulls = []
    for dtype, shape, strides in columns.forms:
        steps = row_major_strides(shape) if strides is None else strides
        hull = 1 + sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
        hulls.append(0 if 0 in shape else hull * dtype.itemsize)
    return hulls


def _inside_others(columns: Columns, changed: Collection[tuple[int, int]]) -> set[tuple[int, int]]:
    """Places (offset and form) of averaged floats that are views of a part of another one, which
    lies without gaps: the average of that one is theirs."""
    if len(changed) < 2:
        return set()
    hulls = _hulls(columns)
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
    inside: Collection[tuple[int, int]],
) -> None:
    """CannotKeep if a replaced tensor shares some of its bytes with a different view, but for
    those ``inside`` one."""
    table = request.template.tensors
    columns = table.columns
    hulls = _hulls(columns)
    distinct: dict[tuple[int, int], str] = {}
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
    start: int, nbytes: int, at: int, replaced: Sequence[Replacement]
) -> tuple[list[tuple[int, int]], list[Kept]]:
    """What fills ``nbytes`` of the output from ``at`` on, which are the template's from ``start``
    on: tensors with their offsets, and what is kept between. ``replaced`` is sorted; none crosses
    the ends."""
    places: list[tuple[int, int]] = []
    kept: list[Kept] = []
    position, end = start, start + nbytes
    by_offset = attrgetter("offset")
    first = bisect_left(replaced, start, key=by_offset)
    for replacement in replaced[first : bisect_left(replaced, end, first, key=by_offset)]:
        if replacement.offset > position:
            kept.append(Kept(at + position - start, position, replacement.offset - position))
        places.append((replacement.number, at + replacement.offset - start))
        position = replacement.end
    if position < end:
        kept.append(Kept(at + position - start, position, end - position))
    return places, kept
