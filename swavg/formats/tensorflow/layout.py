"""Writing a bundle: one data file with all that the template holds, and an index that follows the
data, whose checksums it has."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

from swavg.errors import InputError, OutputError, RequestError
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.layout import FileLayout, Kept, Layout, WriteRequest, losses
from swavg.formats.safetensors import without_ties
from swavg.formats.tensorflow import LATEST, NAME, RECIPE, sstable
from swavg.formats.tensorflow.bundle import (
    NUMBERS,
    STRING,
    Bundle,
    Entry,
    data_file,
    encoded,
    read_bundle,
)
from swavg.formats.tensorflow.opened import Template
from swavg.formats.tensorflow.proto import field
from swavg.formats.tensorflow.slices import slice_key
from swavg.storage.crc import RegionChecksum
from swavg.storage.sources import LocalFile

_HEADER = field(1, 1) + field(3, field(1, 1))
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
    """The index: its entries by key. Those of the template have their checksums, those of tensors
    get the checksums of what is written."""

    entries: tuple[tuple[bytes, Entry], ...] = ()
    kept_keys: frozenset[bytes] = frozenset()
    template: str = ""

    def deferred(self, crc: RegionChecksum) -> Iterator[tuple[int, Callable[[], bytes]]]:
        def finished(key: bytes, entry: Entry) -> Entry:
            if entry.slices or not entry.size:
                return entry
            found = crc(entry.offset, _DATA)
            if key not in self.kept_keys:
                return replace(entry, crc=found)
            # Checksums of strings are not those of their bytes.
            if entry.number != STRING and found != entry.crc:
                name = key.decode(errors="replace")
                raise InputError(self.template, f"is damaged: '{name}' does not have its CRC-32C")
            return entry

        yield 0, lambda: _index((key, finished(key, entry)) for key, entry in self.entries)

    def verify(self, path: str) -> None:
        """Read the finished index as any."""
        try:
            _, found = read_bundle(path.removesuffix(".index"))
        except InputError as error:
            raise OutputError(path, error.problem) from None
        if list(found.entries) != [key for key, _ in self.entries]:
            raise OutputError(path, "tells of other tensors than were written")


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
    size = len(_index(entries))
    index = IndexLayout(
        f"{NAME}.index",
        size,
        specs,
        array("I"),
        array("q"),
        entries=tuple(entries),
        kept_keys=frozenset(kept).difference(tensors),
        template=request.template.path,
    )
    named = "".join(f'{field}: "{NAME}"\n' for field in _LATEST_FIELDS)
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
