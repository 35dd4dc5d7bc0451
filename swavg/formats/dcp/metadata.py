"""The pickle ``.metadata`` of a distributed checkpoint: which chunks of what lie where.

It is read by the interpreter of torch pickles, which runs and imports nothing; a frame at a time,
and what there is of each chunk in runs.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from swavg.errors import InputError
from swavg.formats.dcp.place import METADATA
from swavg.formats.dcp.runs import ChunkRun, EntryRun, Runs
from swavg.formats.dcp.saved import OLD_PROPERTIES, ChunkColumns, Chunks, Place, Saved, SavedTensor
from swavg.formats.part_names import is_plain_name
from swavg.formats.tensors import Shape
from swavg.formats.torch.objects import Global, Opaque, is_count
from swavg.formats.torch.unpickler import Graph, unpickle
from swavg.storage.paths import find_file
from swavg.storage.pool import Pool

_MAX_BYTES = 48 << 20
"""Of a frame, and of a pickle without any."""
_MAX_OPCODES = 12_000_000
"""Some 100 for each tensor; of its chunks all but the first are in runs."""
_MAX_MEMORY = 320 << 20
_MAX_CHUNKS = 1_400_000
"""As many as there is memory for."""
_MAX_DIMENSIONS = 32
_MAX_NAME = 4096
_NO_START = (-1,)
"""Of an object: no tensor has a chunk that begins there."""
_HEAD, _FRAME = 11, b"\x95"
_FAMILIES = ("torch", "olmo_core", "megatron", "pathlib", "collections")
"""The packages whose classes such a file names. Nothing of them is run, and most is passed over."""
_BUILTINS = ("set", "frozenset", "bytes")


def read_metadata(folder: str) -> Saved:
    """What the ``.metadata`` of ``folder`` says. InputError if that is impossible."""
    path = os.path.join(folder, METADATA)
    graph = _graph(path)
    for named in graph.globals:
        plain = named.module == "builtins" and named.name in _BUILTINS
        if not plain and named.module.partition(".")[0] not in _FAMILIES:
            raise InputError(
                path,
                f"names {named.module[:80]}.{named.name[:80]}, which no distributed checkpoint"
                " does; torch would import it",
                hint="Nothing of it was run. Do not load it with torch.",
            )
    old = any(named.module == OLD_PROPERTIES for named in graph.globals)
    return replace(_Reader(path).saved(graph.top), old=old)


def _graph(path: str) -> Graph:
    """The pickle, read a frame at a time; whole where it has none (before protocol 4)."""
    file = find_file(path)
    at = 0
    with Pool() as pool:

        def more(size: int) -> bytes:
            nonlocal at
            if size > _MAX_BYTES:
                raise ValueError(f"a piece of it is larger than {_MAX_BYTES >> 20} MiB")
            size = min(size, file.size - at)
            at += size
            return bytes(pool.read(file, at - size, size))

        start = more(min(file.size, _HEAD))
        if start[2:3] != _FRAME:
            if file.size > _MAX_BYTES:
                raise InputError(path, f"is larger than {_MAX_BYTES >> 20} MiB, in one piece")
            start += more(file.size - at)
        return unpickle(
            path, start, max_opcodes=_MAX_OPCODES, max_memory=_MAX_MEMORY,
            more=more, read_on=Runs().read_on,
        )  # fmt: skip


class _Reader:
    """Reads the objects of one pickle; every InputError names it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.files: dict[str, int] = {}
        self.chunks = ChunkColumns()

    def wrong(self, problem: str) -> InputError:
        return InputError(self.path, f"is no metadata of a distributed checkpoint: {problem}")

    def saved(self, top: object) -> Saved:
        state = self.state(top, "Metadata")
        entries, of_name = self.entries(self.mapping(state, "storage_data"))
        tensors: dict[str, SavedTensor] = {}
        objects: dict[str, Place] = {}
        for key, described in _taken(self.mapping(state, "state_dict_metadata")):
            name = self.name(key)
            # By text, whose hash no file can choose.
            places: dict[str, int] = {}
            for number in of_name.get(name, ()):
                first = places.setdefault(str(entries.starts[number]), number)
                if first != number and entries.place(first) != entries.place(number):
                    raise self.wrong(f"two chunks of '{name[:80]}' begin at the same element")
            if self.kind(described) != "BytesStorageMetadata":
                tensors[name] = self.tensor(name, described, entries, places)
            elif len(places) == 1:
                objects[name] = entries.place(next(iter(places.values())))
            else:
                raise self.wrong(f"'{name[:80]}' lies in {len(places)} places")
        paths = {}
        planned = state.get("planner_data")
        for key, keys in planned.items() if isinstance(planned, dict) else ():
            if isinstance(key, str) and type(keys) is tuple and _are_keys(keys):
                paths[key] = keys
        return Saved(tuple(self.files), tensors, objects, paths)

    def entries(
        self, stored: dict[object, object]
    ) -> tuple[ChunkColumns, Mapping[str, Iterable[int]]]:
        """Where chunks lie (what their shapes are does not stand there), and the numbers of those
        of each name."""
        columns = ChunkColumns()
        of_name: dict[str, array[int]] = {}
        for index, info in _taken(stored):
            if isinstance(index, EntryRun):
                names: Sequence[object] = index.names
                starts: Sequence[object] = index.starts
                if min(index.offsets) < 0 or min(index.lengths) < 0:
                    raise self.wrong("a chunk without offset and length")
                files = {file: self.file(file) for file in dict.fromkeys(index.files)}
                columns.files.extend(map(files.__getitem__, index.files))
                columns.offsets += index.offsets
                columns.lengths += index.lengths
            else:
                fields = self.state(index, "MetadataIndex")
                names, starts = [fields.get("fqn")], [fields.get("offset")]
                place = self.place(info)
                if place.transforms:
                    columns.transforms[len(columns)] = place.transforms
                columns.files.append(place.file)
                columns.offsets.append(place.offset)
                columns.lengths.append(place.length)
            for name, start in zip(names, starts, strict=True):
                numbers = of_name.get(name) if isinstance(name, str) else None
                if numbers is None:
                    numbers = of_name.setdefault(self.name(name), array("I"))
                numbers.append(len(columns))
                columns.starts.append(_NO_START if start is None else self.shape(start))
        return columns, of_name

    def tensor(
        self, name: str, described: object, entries: ChunkColumns, places: Mapping[str, int]
    ) -> SavedTensor:
        fields = self.state(described, "TensorStorageMetadata")
        properties = self.state_of(fields.get("properties"), "TensorProperties")
        dtype = layout = None
        if isinstance(properties, tuple) and len(properties) >= 2:
            dtype, layout = properties[:2]
        if not isinstance(dtype, Global) or not _is_strided(layout):
            raise self.wrong(f"'{name[:80]}' is no plain tensor")
        begun = len(self.chunks)
        listed = fields.get("chunks")
        for start, shape in self.boxes(listed if isinstance(listed, list) else ()):
            number = places.get(str(start))
            if number is None and len(places) == 1 and len(self.chunks) == begun:
                number = places.get(str(_NO_START))
            if number is None:
                raise self.wrong(f"a chunk of '{name[:80]}' has no place in a file")
            self.chunks.add(start, shape, entries.place(number))
        # Tensors may share a list.
        if len(self.chunks) > _MAX_CHUNKS:
            raise InputError(self.path, f"has more than {_MAX_CHUNKS:,} chunks")
        chunks = Chunks(self.chunks, begun, len(self.chunks))
        return SavedTensor(dtype.name, self.shape(fields.get("size")), chunks)

    def boxes(self, listed: Sequence[object]) -> Iterator[tuple[Shape, Shape]]:
        """Where each chunk of a tensor starts, and its shape."""
        for chunk in listed:
            if isinstance(chunk, ChunkRun):
                yield from zip(chunk.starts, chunk.shapes, strict=True)
            else:
                box = self.state(chunk, "ChunkStorageMetadata")
                yield self.shape(box.get("offsets")), self.shape(box.get("sizes"))

    def place(self, info: object) -> Place:
        fields = self.state(info, "_StorageInfo")
        file = self.file(fields.get("relative_path"))
        offset, length = fields.get("offset"), fields.get("length")
        if not is_count(offset) or not is_count(length):
            raise self.wrong("a chunk without offset and length")
        transforms = fields.get("transform_descriptors") or ()
        if not isinstance(transforms, (list, tuple)) or not all(
            isinstance(each, str) for each in transforms
        ):
            raise self.wrong("what was done to a chunk is no list of names")
        return Place(file, offset, length, tuple(transforms))

    def file(self, name: object) -> int:
        """The number of a data file."""
        if not isinstance(name, str) or not is_plain_name(name):
            raise InputError(self.path, f"names the file {str(name)[:80]!r} outside its folder")
        return self.files.setdefault(name, len(self.files))

    def mapping(self, state: Mapping[object, object], name: str) -> dict[object, object]:
        found = state.get(name)
        if not isinstance(found, dict):
            raise self.wrong(f"it has no {name}")
        return found

    def state(self, node: object, kind: str) -> Mapping[object, object]:
        """The attributes of an object of this class."""
        found = self.state_of(node, kind)
        if found is None and kind == "BytesStorageMetadata":
            return {}
        if not isinstance(found, dict):
            raise self.wrong(f"a {kind} is expected")
        return found

    def state_of(self, node: object, kind: str) -> object:
        if not isinstance(node, Opaque) or self.kind(node) != kind:
            raise self.wrong(f"a {kind} is expected")
        return node.state

    def kind(self, node: object) -> str:
        of = node.of if isinstance(node, Opaque) else None
        return of.name if isinstance(of, Global) else ""

    def name(self, value: object) -> str:
        if not isinstance(value, str) or len(value) > _MAX_NAME:
            raise self.wrong("a name that is none")
        return value

    def shape(self, value: object) -> Shape:
        if (
            type(value) is not tuple
            or len(value) > _MAX_DIMENSIONS
            or not all(map(is_count, value))
        ):
            raise self.wrong("an impossible shape or offset")
        return value


def _taken(items: dict[object, object]) -> Iterator[tuple[object, object]]:
    """The items, each taken out before it is read: most memory is in few of them."""
    keys = [*items]
    for key in keys:
        yield key, items.pop(key)


def _are_keys(keys: Sequence[object]) -> bool:
    return bool(keys) and all(isinstance(key, str) or is_count(key) for key in keys)


def _is_strided(layout: object) -> bool:
    return isinstance(layout, Opaque) and layout.args == ("torch.strided",)
