"""Writing a bundle: one data file with all that the template holds, and an index that follows the
data, whose checksums it has."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice

from swavg.errors import InputError, OutputError, RequestError
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.layout import FileLayout, Kept, Layout, WriteRequest, losses
from swavg.formats.safetensors import without_ties
from swavg.formats.tensorflow import LATEST, NAME, RECIPE, proto, sstable
from swavg.formats.tensorflow.bundle import (
    NUMBERS,
    STRING,
    Bundle,
    Entry,
    data_file,
    decoded,
    encoded,
    read_bundle,
)
from swavg.formats.tensorflow.opened import Template
from swavg.formats.tensorflow.slices import slice_key
from swavg.storage.crc import RegionChecksum
from swavg.storage.sources import LocalFile

_HEADER = proto.field(1, 1) + proto.field(3, proto.field(1, 1))
"""One data file, little-endian, version 1."""
_DATA = 1
"""The number of the data file: it is behind the index."""
_LATEST_FIELDS = ("model_checkpoint_path", "all_model_checkpoint_paths")


@dataclass(frozen=True, eq=False)
class DataLayout(FileLayout):
    """The bytes of all tensors without gaps, by key."""

    checksum = "crc32c"

    def verify(self, path: str) -> None:
        size = LocalFile.find(path).size
        if size != self.size:
            raise OutputError(path, f"has {size:,} bytes, not {self.size:,}")


@dataclass(frozen=True, eq=False)
class IndexLayout(FileLayout):
    """The index. ``blank`` is it without the checksums of the tensors ``written``, which are the
    data file's; those of what is kept of the ``template`` are in it."""

    blank: bytes = b""
    written: array[int] = field(default_factory=lambda: array("I"))
    template: str = ""

    def deferred(self, crc: RegionChecksum) -> Iterator[tuple[int, Callable[[], bytes]]]:
        tensors = {self.specs.names[number].encode() for number in self.written}

        def finished() -> Iterator[tuple[bytes, Entry]]:
            for key, value in self._entries():
                entry = decoded(value)
                found = crc(entry.offset, _DATA) if entry.size else 0
                if key in tensors:
                    entry = replace(entry, crc=found)
                elif entry.size and entry.number != STRING and found != entry.crc:
                    # The checksum of strings is not that of their bytes.
                    problem = f"'{key.decode(errors='replace')}' does not have its CRC-32C"
                    raise InputError(self.template, f"is damaged: {problem}")
                yield key, entry

        yield 0, lambda: _index(finished())

    def verify(self, path: str) -> None:
        """Read the finished index as any."""
        try:
            _, found = read_bundle(path.removesuffix(".index"))
        except InputError as error:
            raise OutputError(path, error.problem) from None
        if list(found.entries) != [key for key, _ in self._entries()]:
            raise OutputError(path, "tells of other tensors than were written")

    def _entries(self) -> Iterator[tuple[bytes, bytes]]:
        return islice(sstable.entries(self.name, self.blank), 1, None)


def lay_out(request: WriteRequest) -> Layout:
    """Plan a folder: all entries by key, tensors whole, and of the template what is no tensor of
    its model. RequestError for a dtype or a name that the format lacks."""
    specs, sizes = request.specs, request.specs.sizes
    numbers = without_ties(request) if request.drop_ties else range(len(specs))
    tensors = {_key(specs.names[number]): number for number in numbers}
    bundle, kept = _kept(request.template)
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
        template=request.template.path,
    )
    named = "".join(f'{latest}: "{NAME}"\n' for latest in _LATEST_FIELDS)
    files = {LATEST: named.encode(), RECIPE: request.recipe.encode()}
    lost = losses(request) if bundle is None else ""
    notes = (f"a TensorFlow checkpoint holds tensors only: {lost} left out",) if lost else ()
    meta = f"{bundle.prefix}.meta" if bundle is not None else ""
    side = {f"{NAME}.meta": meta} if os.path.isfile(meta) else {}
    return Layout((index, data), files, side, notes)


def _key(name: str) -> bytes:
    if not name or name.startswith("\0"):
        raise RequestError(f"A tensor of a TensorFlow checkpoint cannot be called {name!r}.")
    return name.encode()


def _kept(template: Checkpoint) -> tuple[Bundle | None, dict[bytes, Entry]]:
    """The bundle of a template, if it is one, and its entries but for the model's variables."""
    if not isinstance(template.extras.template, Template):
        return None, {}
    _, bundle = read_bundle(template.extras.template.prefix)
    kept = dict(bundle.entries)
    for name in template.extras.template.names:
        key = name.encode()
        for extents in kept.pop(key).slices:
            del kept[slice_key(key, extents)]
    return bundle, kept


def _index(entries: Iterable[tuple[bytes, Entry]]) -> bytes:
    return sstable.table(chain([(b"", _HEADER)], ((key, encoded(each)) for key, each in entries)))
