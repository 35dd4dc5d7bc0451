"""What a distributed checkpoint is written as: the tensors, and all else that the template holds,
byte for byte."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from swavg.errors import some
from swavg.formats.dcp.data_files import DataFiles
from swavg.formats.dcp.model_part import EXTRA_STATE, ModelPart
from swavg.formats.dcp.opened import DcpTemplate
from swavg.formats.dcp.pickled import pickled
from swavg.formats.dcp.place import METADATA, RECIPE
from swavg.formats.dcp.saved import Saved
from swavg.formats.layout import Layout, Specs, WriteRequest, losses
from swavg.storage.pool import Pool
from swavg.storage.sources import Source

_LISTED = 6
_LOOKED_INTO = 1 << 20
"""Bytes at the end of an object."""
_MASTERS = ".fp32_param."
"""In the names of Megatron-LM's."""


def lay_out(request: WriteRequest) -> Layout:
    """A folder like the template's, if that is a distributed checkpoint and its names stay;
    otherwise one of the tensors alone, under their own names (or where the template's model lies,
    if these are the template's)."""
    is_dcp = request.template.format == "dcp"
    template = request.template.extras.template
    if not isinstance(template, DcpTemplate) or request.template.renamed:
        template = None
    saved, part = (None, None) if template is None else template.read()
    named = is_dcp and not request.template.renamed
    names = _Names(request.specs, saved, part, request.template.extras.root_key if named else None)
    files = DataFiles(request.specs, names.full)
    for number in range(len(request.specs)):
        files.add_tensor(number)
    kept: Saved | None = None
    if saved is not None and part is not None and not request.weights_only:
        kept = files.add_kept(saved, frozenset(part.names.values()))
    folder = template.place.inner if template is not None else ""

    def inside(name: str) -> str:
        return os.path.join(folder, name)

    written = replace(files.saved(names.paths, kept), old=saved is not None and saved.old)
    small = {inside(METADATA): pickled(written)}
    if request.recipe:
        small[inside(RECIPE)] = request.recipe.encode()
    extras, last = request.template.extras, os.path.basename(request.template.path.rstrip("/"))
    notes: list[str] = []
    if kept is None and not request.weights_only and (lost := losses(request)):
        notes.append(f"the output holds tensors only: {lost} left out")
    if kept is not None and extras.others:
        notes.append(f"left as in {last}: {some(extras.others, _LISTED)}")
    if kept is not None and extras.left_out:
        notes.append(f"not copied from {last}: {some(extras.left_out, _LISTED)}")
    warnings = [
        f"'{path}' was not averaged, but left as in {last} (--key {path} averages it alone)"
        for path in (part.further if part is not None and kept is not None else ())
    ]
    if kept is not None and any(_MASTERS in name for name in kept.tensors):
        warnings.append(
            f"the optimizer's float32 weights are those of {last}: training that resumes from the"
            " output goes on with them, not with the average"
        )
    if kept is not None and saved is not None and part is not None:
        warnings += (
            f"'{name}' holds tensors, but is saved as one object (a tuple, say): it was not"
            f" averaged, but left as in {last}"
            for name in _unseen(saved, part, request.template.sources)
        )
    if not is_dcp and not request.copies:
        notes.append(
            "the weights are under their own names, without what a run has around and beside them:"
            f" {last}, the last input, is no distributed checkpoint"
        )
    side = template.side_files if template is not None and kept is not None else {}
    return Layout(tuple(files.layouts(inside)), small, side, tuple(notes), tuple(warnings))


def _unseen(saved: Saved, part: ModelPart, sources: Sequence[Source]) -> Iterator[str]:
    """The names of objects in the model that hold arrays."""
    own = {name for name in part.objects if EXTRA_STATE not in name}
    with Pool() as pool:
        for name, place in saved.objects.items() if own else ():
            local = ".".join(map(str, saved.path(name)[len(part.root) :]))
            if local not in own:
                continue
            size = min(place.length, _LOOKED_INTO)
            data = pool.read(sources[place.file], place.offset + place.length - size, size)
            # Its zip lists a member for each tensor, at the end; other arrays are in its pickle.
            if any(word in bytes(data) for word in (b"/data/0", b"numpy")):
                yield local


class _Names:
    """The full names of the tensors, and the keys that they stand for; ``root_key`` leads to those
    that no ``part`` knows."""

    def __init__(
        self, specs: Specs, saved: Saved | None, part: ModelPart | None, root_key: str | None
    ) -> None:
        self.full: list[str] = []
        self.paths: dict[str, tuple[str | int, ...]] = {}
        known = {} if part is None else part.names
        root = tuple(filter(None, (root_key or "").split("."))) if part is None else part.root
        for local in specs.names:
            name = known.get(local) or ".".join((*root, local))
            self.full.append(name)
            if saved is None or saved.paths:
                self.paths[name] = (
                    (*root, local) if saved is None else saved.paths.get(name, (*root, local))
                )
        if saved is not None:
            others = {name: keys for name, keys in saved.paths.items() if name not in self.paths}
            self.paths |= others
