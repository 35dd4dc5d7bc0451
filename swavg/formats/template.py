"""Writing a file as a template has it: other bytes in its tensors, all else byte for byte."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeVar

from swavg.formats.layout import FileLayout, Kept, WriteRequest
from swavg.formats.overlaps import (
    Place,
    Stretch,
    hull,
    inside_others,
    stretches_of,
)
from swavg.formats.strides import storage_order
from swavg.formats.tensors import Shape


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
    if request.alike and (inside := inside_others(columns, changed)):
        try:
            return _placed(request, changed, inside), []
        except CannotKeep as problem:
            reason = problem
    stretches = stretches_of(columns, changed, inside)
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


class Splice:
    """What stands in the output for stretches of the template's file, which are added one by one:
    ``tensors`` at their ``offsets``, what is ``kept`` between, and ``bodies`` of edits at theirs.
    ``replaced`` and ``edits`` are sorted; none crosses the ends of a stretch."""

    def __init__(self, replaced: Sequence[Replacement], edits: Sequence[Edit] = ()) -> None:
        self._replaced, self._edits = replaced, edits
        self.tensors, self.offsets = array("I"), array("q")
        self.kept: list[Kept] = []
        self.bodies: list[tuple[int, bytes]] = []

    def add(self, start: int, nbytes: int, at: int) -> None:
        """The template's ``nbytes`` from ``start`` on go to ``at``."""
        position, end = start, start + nbytes
        here: Sequence[Replacement | Edit] = within(self._replaced, start, end)
        if self._edits:
            here = sorted((*here, *within(self._edits, start, end)), key=_offset)
        for each in here:
            if each.offset > position:
                self.kept.append(Kept(at, position, each.offset - position))
                at += each.offset - position
            if isinstance(each, Edit):
                self.bodies.append((at, each.data))
                at += len(each.data)
            else:
                self.tensors.append(each.number)
                self.offsets.append(at)
                at += each.nbytes
            position = each.end
        if position < end:
            self.kept.append(Kept(at, position, end - position))

    @property
    def orders(self) -> dict[int, Shape]:
        """The order of axes of each tensor that is not written in row-major order. All have a
        place now."""
        placed = len(self.tensors), len(self.bodies)
        assert placed == (len(self._replaced), len(self._edits)), "averages without a place"
        return {each.number: each.order for each in self._replaced if each.order is not None}


def like_file(
    request: WriteRequest,
    check: Callable[[str], None],
    replaced: Sequence[Replacement],
    edits: Sequence[Edit] = (),
    tail: tuple[int, bytes] | None = None,
) -> FileLayout:
    """The template's file, with other bytes in these places; with a ``tail``, it goes on with its
    bytes where the tail begins."""
    end, added = (request.template.size, b"") if tail is None else tail
    size, splice = end + growth(edits), Splice(replaced, edits)
    splice.add(0, end, 0)
    return FileLayout(
        "",
        size + len(added),
        request.specs,
        splice.tensors,
        splice.offsets,
        tuple(splice.kept),
        splice.orders,
        (*splice.bodies, *([(size, added)] if added else ())),
        check,
    )


def growth(edits: Sequence[Edit]) -> int:
    """Bytes by which a file gets longer."""
    return sum(len(edit.data) - edit.nbytes for edit in edits)


def within(items: Sequence[Item], start: int, end: int) -> Sequence[Item]:
    """Those, of sorted ones, of the bytes from ``start`` to ``end`` of the template's file."""
    first = bisect_left(items, start, key=_offset)
    return items[first : bisect_left(items, end, first, key=_offset)]
