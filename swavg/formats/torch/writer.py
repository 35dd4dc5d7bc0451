"""What a torch file is written as: like its template where that can be, else a bare state dict."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter

from swavg.errors import OutputError
from swavg.formats.layout import FileLayout, Layout, WriteRequest, losses, opening
from swavg.formats.records import Record
from swavg.formats.template import (
    CannotKeep,
    Edit,
    Replacement,
    Splice,
    growth,
    like_file,
    replacements,
    within,
)
from swavg.formats.torch.archive import Archive, read_archive, read_pickle
from swavg.formats.torch.arrays import FAR
from swavg.formats.torch.edits import text_edits, view_edits
from swavg.formats.torch.opened import TorchTemplate, open_archive
from swavg.formats.torch.plain import RECIPE, lay_out_plain
from swavg.formats.torch.unpickler import MAX_BYTES
from swavg.formats.zip_layout import ArchiveLayout, Member, arranged, lay_out_archive
from swavg.storage.paths import find_file, reading
from swavg.storage.pool import Pool
from swavg.storage.sources import Source

# Padding is an extra field, whose length is a 16-bit number.
_MAX_ALIGNMENT = 1 << 15
_BLOCK = 1 << 20


def lay_out(request: WriteRequest) -> Layout:
    """One file with all else that the template holds, if it is a torch file whose structure can
    be kept; otherwise the one state dict that was found, and a note on what that leaves out."""
    if request.weights_only:
        return Layout((plan_file(request, range(len(request.specs))),))
    try:
        return Layout((_like_template(request),))
    except CannotKeep as reason:
        joined = request.template.extras.joined
        if joined and (layout := _with_siblings_left(request, str(reason))) is not None:
            return layout
        lost = losses(request)
        note = f"{lost} left out: the output is a bare state dict ({reason})"
        beside = request.template.extras.names_beside
        numbers = [n for n, name in enumerate(request.specs.names) if name not in beside]
        return Layout((plan_file(request, numbers),), notes=(note,) if lost else ())


def _with_siblings_left(request: WriteRequest, reason: str) -> Layout | None:
    """The template's structure with other state dicts as they are there, if it is they that could
    not be kept."""
    extras = request.template.extras
    beside = extras.names_beside
    unchanged = (
        own or name in beside
        for own, name in zip(request.unchanged, request.specs.names, strict=True)
    )
    try:
        layout = _like_template(replace(request, unchanged=bytes(unchanged)))
    except CannotKeep:
        return None
    paths = ", ".join(f"'{path}'" for path in extras.joined)
    last = os.path.basename(request.template.path)
    return Layout((layout,), warnings=(f"{paths} not averaged, but left as in {last}: {reason}",))


def plan_file(request: WriteRequest, numbers: Sequence[int], name: str = "") -> FileLayout:
    """A state dict of these tensors."""
    names = tuple(request.specs.names[number] for number in numbers)
    present = set(names)
    ties = [tuple(tied for tied in group if tied in present) for group in request.ties]
    ties = [group for group in ties if len(group) > 1]
    check = partial(_check, names=names)
    recipe = request.recipe.encode()
    return lay_out_plain(request.specs, numbers, ties, recipe, name, check)


def _like_template(request: WriteRequest) -> FileLayout:
    template = request.template.extras.template
    if request.template.renamed:
        raise CannotKeep("names of tensors change")
    if not isinstance(template, TorchTemplate):
        own = request.template.format == "torch"
        # Of one of its own it is kept but where factors are put side by side.
        raise CannotKeep("shapes of tensors change" if own else "the last input is no PyTorch file")
    replaced, stretches = replacements(request)
    texts = [each for each in replaced if each.offset >= FAR]
    replaced = [each for each in replaced if each.offset < FAR]
    edits = text_edits(request, texts, template.texts) + view_edits(request, stretches)
    edits.sort(key=attrgetter("offset"))
    if template.archive is None:
        return _legacy_like(request, replaced, edits)
    return _archive_like(request, template.archive, replaced, edits)


def _archive_like(
    request: WriteRequest,
    archive: Archive,
    replaced: Sequence[Replacement],
    edits: Sequence[Edit],
) -> ArchiveLayout:
    """All records of the template in their order, with other bytes in its averaged tensors."""
    if archive.alignment > _MAX_ALIGNMENT:
        raise CannotKeep(f"its records are aligned to {archive.alignment:,} bytes")
    recipe = request.recipe.encode()
    records = [record for record in archive if record.name != RECIPE]
    members = [Member(f"{archive.root}/{each.name}", _size(each, edits)) for each in records]
    if recipe:
        members.append(Member(f"{archive.root}/{RECIPE}", len(recipe), recipe))
    arrangement = tuple(arranged(members, archive.alignment))
    splice = Splice(replaced, edits)
    for record, placed in zip(records, arrangement, strict=False):
        splice.add(record.offset, record.size, placed.start)
    pickled = next(record for record in records if record.name == "data.pkl")
    end = pickled.offset + pickled.size
    changed = (*within(replaced, pickled.offset, end), *within(edits, pickled.offset, end))
    return lay_out_archive(
        arrangement,
        request.specs,
        splice.tensors,
        splice.offsets,
        kept=splice.kept,
        bodies=splice.bodies,
        orders=splice.orders,
        check=partial(
            _check_records, arrangement=arrangement, pickle_crc=None if changed else pickled.crc
        ),
    )


def _size(record: Record, edits: Sequence[Edit]) -> int:
    """Of a record, after the edits."""
    here = within(edits, record.offset, record.offset + record.size) if edits else ()
    return record.size + growth(here)


def _legacy_like(
    request: WriteRequest, replaced: Sequence[Replacement], edits: Sequence[Edit]
) -> FileLayout:
    """The template's file; the format has no place for a recipe."""
    template = request.template
    first = min(map(attrgetter("offset"), (*replaced, *edits)), default=template.size)
    check = partial(
        _check_pickles,
        template=template.sources[0],
        begin=min(first, MAX_BYTES),
        size=template.size + growth(edits),
    )
    return like_file(request, check, replaced, edits)


def _check(path: str, *, names: tuple[str, ...]) -> None:
    """OutputError unless the finished file opens and has just these tensors, in this order."""
    with opening(path):
        found = open_archive(path, "")
    if tuple(found.tensors) != names:
        raise OutputError(path, "the finished file has other tensors than were planned")


def _check_pickles(path: str, *, template: Source, begin: int, size: int) -> None:
    """OutputError unless the finished file has ``size`` bytes, of which it has ``begin`` in common
    with the template: its pickles say what follows."""
    file = find_file(path)
    if file.size != size:
        raise OutputError(path, "the finished file has not the size that was planned")
    with Pool() as pool:
        for start in range(0, begin, _BLOCK):
            block = min(_BLOCK, begin - start)
            if pool.read(file, start, block) != pool.read(template, start, block):
                raise OutputError(path, "the finished file has other pickles than its template")


def _check_records(path: str, *, arrangement: Sequence[Member], pickle_crc: int | None) -> None:
    """OutputError unless the finished file has just these records, and a pickle of this CRC-32
    (None: averages are in it)."""
    with opening(path), reading(path) as (file, read):
        archive = read_archive(read, path, file.size)
        crc = zlib.crc32(read_pickle(read, archive))
    planned = [(each.name, each.start, each.size) for each in arrangement]
    found = [(f"{archive.root}/{each.name}", each.offset, each.size) for each in archive]
    if found != planned or pickle_crc not in (None, crc):
        raise OutputError(path, "the finished file has other records than were planned")
