"""The pickle ``.metadata`` of a distributed checkpoint: which chunks of what lie where.

It is read by the interpreter of torch pickles, which runs and imports nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

from swavg.dtypes import BY_NAME, DType
from swavg.errors import InputError
from swavg.formats.checkpoint import Shape
from swavg.formats.dcp.place import METADATA
from swavg.formats.torch.objects import Global, Opaque
from swavg.formats.torch.unpickler import unpickle
from swavg.storage.sources import LocalFile, Pool

_MAX_BYTES = 48 << 20
_MAX_OPCODES = 12_000_000
"""Some 70 for each chunk, and 40 for each tensor."""
_MAX_MEMORY = 320 << 20
"""Of the objects, of which a chunk has three: those of some 100,000 chunks."""
_MAX_DIMENSIONS = 32
_MAX_NAME = 4096
_LIMIT = 1 << 62
_FAMILIES = ("torch", "olmo_core", "megatron", "pathlib", "collections")
"""The packages whose classes such a file names. Nothing of them is run, and most is passed over."""
_BUILTINS = ("set", "frozenset", "bytes")


class Place(NamedTuple):
    """``length`` bytes of file number ``file`` from ``offset`` on: a whole zip that torch.save
    wrote. ``transforms`` name what was done to them (a compression)."""

    file: int
    offset: int
    length: int
    transforms: tuple[str, ...] = ()


class Chunk(NamedTuple):
    """A box of a tensor, ``shape`` elements from ``start`` on, and where it lies."""

    start: Shape
    shape: Shape
    place: Place


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """``dtype`` is torch's name of it, ``known`` ours (None: it is none of the table's)."""

    dtype: str
    shape: Shape
    chunks: tuple[Chunk, ...]

    @property
    def known(self) -> DType | None:
        return BY_NAME.get(self.dtype)


@dataclass(frozen=True, slots=True)
class Saved:
    """What a distributed checkpoint holds: ``tensors`` and pickled ``objects`` by their full names,
    in the data ``files`` of its folder. ``paths`` has the keys of the nested dictionaries that a
    name stands for, if they are recorded."""

    files: tuple[str, ...]
    tensors: Mapping[str, SavedTensor]
    objects: Mapping[str, Place]
    paths: Mapping[str, tuple[str | int, ...]]

    def path(self, name: str) -> tuple[str | int, ...]:
        """The keys that lead to ``name``."""
        return self.paths.get(name, (name,))

    def everything(self) -> Iterator[tuple[str, Place]]:
        """Each place with the name of what lies there."""
        for name, tensor in self.tensors.items():
            for chunk in tensor.chunks:
                yield name, chunk.place
        yield from self.objects.items()


def read_metadata(folder: str) -> Saved:
    """What the ``.metadata`` of ``folder`` says. InputError if that is impossible."""
    path = os.path.join(folder, METADATA)
    file = LocalFile.find(path)
    if file.size > _MAX_BYTES:
        raise InputError(path, f"is larger than {_MAX_BYTES >> 20} MiB")
    with Pool() as pool:
        data = bytes(pool.read(file, 0, file.size))
    graph = unpickle(path, data, max_opcodes=_MAX_OPCODES, max_memory=_MAX_MEMORY)
    for named in graph.globals:
        plain = named.module == "builtins" and named.name in _BUILTINS
        if not plain and named.module.partition(".")[0] not in _FAMILIES:
            raise InputError(
                path,
                f"names {named.module[:80]}.{named.name[:80]}, which no distributed checkpoint"
                " does; torch would import it",
                hint="Nothing of it was run. Do not load it with torch.",
            )
    return _Reader(path).saved(graph.top)


class _Reader:
    """Reads the objects of one pickle; every InputError names it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.files: dict[str, int] = {}

    def wrong(self, problem: str) -> InputError:
        return InputError(self.path, f"is no metadata of a distributed checkpoint: {problem}")

    def saved(self, top: object) -> Saved:
        state = self.state(top, "Metadata")
        # By text, whose hash no file can choose.
        places: dict[str, dict[str, Place]] = {}
        for index, info in self.mapping(state, "storage_data").items():
            fields = self.state(index, "MetadataIndex")
            name, offset = self.name(fields.get("fqn")), fields.get("offset")
            at = "" if offset is None else str(self.shape(offset))
            place = self.place(info)
            if places.setdefault(name, {}).setdefault(at, place) != place:
                raise self.wrong(f"two chunks of '{name[:80]}' begin at the same element")
        tensors: dict[str, SavedTensor] = {}
        objects: dict[str, Place] = {}
        for key, described in self.mapping(state, "state_dict_metadata").items():
            name = self.name(key)
            own = places.get(name, {})
            if self.kind(described) == "BytesStorageMetadata":
                if len(own) != 1:
                    raise self.wrong(f"'{name[:80]}' lies in {len(own)} places")
                objects[name] = next(iter(own.values()))
            else:
                tensors[name] = self.tensor(name, described, own)
        paths = {}
        planned = state.get("planner_data")
        for key, keys in planned.items() if isinstance(planned, dict) else ():
            if isinstance(key, str) and type(keys) is tuple and _are_keys(keys):
                paths[key] = keys
        return Saved(tuple(self.files), tensors, objects, paths)

    def tensor(self, name: str, described: object, places: Mapping[str, Place]) -> SavedTensor:
        fields = self.state(described, "TensorStorageMetadata")
        properties = self.state_of(fields.get("properties"), "TensorProperties")
        dtype = layout = None
        if isinstance(properties, tuple) and len(properties) >= 2:
            dtype, layout = properties[:2]
        if not isinstance(dtype, Global) or not _is_strided(layout):
            raise self.wrong(f"'{name[:80]}' is no plain tensor")
        chunks = []
        listed = fields.get("chunks")
        for chunk in listed if isinstance(listed, list) else ():
            box = self.state(chunk, "ChunkStorageMetadata")
            start, shape = self.shape(box.get("offsets")), self.shape(box.get("sizes"))
            place = places.get(str(start))
            if place is None and len(places) == 1:
                place = places.get("")
            if place is None:
                raise self.wrong(f"a chunk of '{name[:80]}' has no place in a file")
            chunks.append(Chunk(start, shape, place))
        return SavedTensor(dtype.name, self.shape(fields.get("size")), tuple(chunks))

    def place(self, info: object) -> Place:
        fields = self.state(info, "_StorageInfo")
        name = fields.get("relative_path")
        offset, length = fields.get("offset"), fields.get("length")
        if not isinstance(name, str) or not is_plain_name(name):
            raise InputError(self.path, f"names the file {str(name)[:80]!r} outside its folder")
        if not _is_count(offset) or not _is_count(length):
            raise self.wrong("a chunk without offset and length")
        transforms = fields.get("transform_descriptors") or ()
        if not isinstance(transforms, (list, tuple)) or not all(
            isinstance(each, str) for each in transforms
        ):
            raise self.wrong("what was done to a chunk is no list of names")
        return Place(
            self.files.setdefault(name, len(self.files)), offset, length, tuple(transforms)
        )

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
            or not all(map(_is_count, value))
        ):
            raise self.wrong("an impossible shape or offset")
        return value


def is_plain_name(name: str) -> bool:
    """Whether a name is that of a file in the folder itself."""
    return name not in ("", ".", "..") and not any(mark in name for mark in "/\\\0")


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _LIMIT


def _are_keys(keys: Sequence[object]) -> bool:
    return bool(keys) and all(isinstance(key, str) or _is_count(key) for key in keys)


def _is_strided(layout: object) -> bool:
    return isinstance(layout, Opaque) and layout.args == ("torch.strided",)
