"""Writing a bundle: one data file with all that the template holds, and an index that follows the
data, whose checksums it has."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice

from swavg.errors import InputError, OutputError, RequestError, some
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.layout import FileLayout, Kept, Layout, WriteRequest, losses
from swavg.formats.tensorflow import LATEST, NAME, RECIPE, proto, sstable
from swavg.formats.tensorflow.bundle import (
    NUMBERS,
    STRING,
    Entry,
    data_file,
    decoded,
    encoded,
    with_crc,
)
from swavg.formats.tensorflow.graph import GRAPH_KEY
from swavg.formats.tensorflow.opened import Template
from swavg.formats.tensorflow.slices import NUL, owner_of
from swavg.storage.crc import RegionChecksum
from swavg.storage.paths import absolute, find_file, is_file, read_file

_HEADER = proto.field(1, 1) + proto.field(3, proto.field(1, 1))
"""One data file, little-endian, version 1."""
_DATA = 1
"""The number of the data file: it is behind the index."""
_LISTED = 4
_SAVED_MODEL = "saved_model.pb"
_LATEST_FIELDS = ("model_checkpoint_path", "all_model_checkpoint_paths")


@dataclass(frozen=True, eq=False, repr=False)
class DataLayout(FileLayout):
    """The bytes of all tensors without gaps, by key."""

    checksum = "crc32c"

    def verify(self, path: str) -> None:
        size = find_file(path).size
        if size != self.size:
            raise OutputError(path, f"has {size:,} bytes, not {self.size:,}")


@dataclass(frozen=True, eq=False, repr=False)
class IndexLayout(FileLayout):
    """The index. ``blank`` is it without the checksums of the tensors ``written`` at ``places``,
    which are the data file's; those of what is kept of the ``template`` are in it."""

    blank: bytes = b""
    written: array[int] = field(default_factory=lambda: array("I"))
    places: array[int] = field(default_factory=lambda: array("q"))
    template: str = ""

    def deferred(self, crc: RegionChecksum) -> Iterator[tuple[int, Callable[[], bytes]]]:
        sizes = self.specs.sizes
        tensors = {
            self.specs.names[number].encode(): (place, sizes[number])
            for number, place in zip(self.written, self.places, strict=True)
        }

        def finished() -> Iterator[tuple[bytes, bytes]]:
            for key, value in sstable.entries(self.name, self.blank):
                if key in tensors:
                    place, size = tensors[key]
                    value = with_crc(value, crc(place, _DATA) if size else 0)
                elif key:
                    self._check_kept(key, decoded(value), crc)
                yield key, value

        yield 0, lambda: sstable.table(finished())

    def _check_kept(self, key: bytes, entry: Entry, crc: RegionChecksum) -> None:
        """InputError for bytes of the template that do not have their checksum."""
        # That of strings is not one of their bytes.
        if not entry.size or entry.number == STRING or crc(entry.offset, _DATA) == entry.crc:
            return
        problem = f"'{key.decode(errors='replace')}' does not have its CRC-32C"
        raise InputError(self.template, f"is damaged: {problem}")

    def verify(self, path: str) -> None:
        """Read the finished index as any."""
        try:
            found = [key for key, _ in sstable.entries(path, read_file(path))]
        except InputError as error:
            raise OutputError(path, error.problem) from None
        if found != [key for key, _ in sstable.entries(path, self.blank)]:
            raise OutputError(path, "tells of other tensors than were written")


def lay_out(request: WriteRequest) -> Layout:
    """Plan a folder: all entries by key, tensors whole, and of the template what is no tensor of
    its model. RequestError for a dtype or a name that the format lacks."""
    specs, sizes = request.specs, request.specs.sizes
    tensors = {_key(specs.names[number]): number for number in request.without_ties}
    template, kept = request.template.extras.template, _kept(request.template)
    entries: list[tuple[bytes, Entry]] = []
    offsets, order, pieces, position = array("q"), array("I"), [], 0
    for key in sorted({*kept, *tensors}):
        number = tensors.get(key)
        if number is None:
            entry = kept[key]
            if entry.size:
                pieces.append(Kept(position, entry.offset, entry.size, entry.shard))
            entry = replace(entry, shard=0, offset=position if entry.size else 0)
        else:
            _, dtype, shape = specs.at(number)
            if dtype.name not in NUMBERS:
                raise RequestError(
                    f"'{specs.names[number]}' is {dtype}, which TensorFlow has not.",
                    hint="Use dtype=float32, or an output of another format.",
                )
            entry = Entry(NUMBERS[dtype.name], shape, 0, position, sizes[number])
            offsets.append(position)
            order.append(number)
        entries.append((key, entry))
        position += entry.size
    data = DataLayout(data_file(NAME, 0, 1), position, specs, order, offsets, tuple(pieces))
    blank = _index(entries)
    index = IndexLayout(
        f"{NAME}.index",
        len(blank),
        specs,
        array("I"),
        array("q"),
        blank=blank,
        written=order,
        places=offsets,
        template=request.template.path,
    )
    named = "".join(f'{latest}: "{NAME}"\n' for latest in _LATEST_FIELDS)
    files = {LATEST: named.encode(), RECIPE: request.recipe.encode()}
    notes: list[str] = []
    warnings: tuple[str, ...] = ()
    side: dict[str, str] = {}
    if not isinstance(template, Template):
        if lost := losses(request):
            notes.append(f"a TensorFlow checkpoint holds tensors only: {lost} left out")
    else:
        last = os.path.basename(request.template.path.rstrip("/"))
        if others := request.template.extras.others:
            notes.append(f"left as in {last}: {some(others, _LISTED)}")
        if is_file(meta := f"{template.prefix}.meta"):
            side = {f"{NAME}.meta": meta}
        warnings = tuple(_graph_left(template.prefix))
    notes.append(f"for TensorFlow its prefix is '{NAME}' in the output's folder")
    return Layout((index, data), files, side, tuple(notes), warnings)


def _graph_left(prefix: str) -> Iterator[str]:
    """A warning for the variables of a SavedModel, which are of little use without its graph."""
    folder, name = os.path.split(absolute(prefix))
    model = os.path.dirname(folder)
    if os.path.basename(folder) == name and is_file(os.path.join(model, _SAVED_MODEL)):
        yield (
            f"{os.path.basename(model)} is a SavedModel: the output has its variables without its"
            f" graph ({_SAVED_MODEL}). In a copy of it, let {NAME}.index and"
            f" {data_file(NAME, 0, 1)} take the places of {name}.index and {data_file(name, 0, 1)}."
        )


def _key(name: str) -> bytes:
    if not name or name.startswith("\0") or name.encode() == GRAPH_KEY:
        raise RequestError(f"A tensor of a TensorFlow checkpoint cannot be called {name!r}.")
    return name.encode()


def _kept(template: Checkpoint) -> dict[bytes, Entry]:
    """The entries of a template but for the model's variables; none if it is no bundle."""
    own = template.extras.template
    if not isinstance(own, Template):
        return {}
    model = {name.encode() for name in own.names}
    path = f"{own.prefix}.index"
    pairs = islice(sstable.entries(path, read_file(path)), 1, None)
    return {
        key: decoded(value)
        for key, value in pairs
        if (owner_of(key) if key.startswith(NUL) else key) not in model
    }


def _index(entries: Iterable[tuple[bytes, Entry]]) -> bytes:
    return sstable.table(chain([(b"", _HEADER)], ((key, encoded(each)) for key, each in entries)))
