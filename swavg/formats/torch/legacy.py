"""Legacy torch files (before 1.6): consecutive pickles, then the bytes of the storages.

The pickles are a magic number, the protocol, facts of the system, the object, and the storages'
keys; then per key an int64 count of elements and their bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from swavg.errors import InputError, NoWeightsError
from swavg.formats.torch.arrays import PickledStorage
from swavg.formats.torch.blocks import Read, read_places
from swavg.formats.torch.objects import Storage
from swavg.formats.torch.unpickler import (
    MAX_BYTES,
    MAX_MEMORY,
    MAX_OPCODES,
    Graph,
    TruncatedError,
    unpickle,
)
from swavg.formats.torch.zip_directory import big_endian

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
# How much of a pickle is read at first: its length is not known.
_WINDOW = 1 << 16
# Opcodes of the pickles of a number or a few facts.
_FEW = 1 << 13


def read_legacy(read: Read, path: str, size: int) -> tuple[Graph, Callable[[Storage], int]]:
    """The object of the file of ``size`` bytes, and what gives the file offset of a storage's first
    element. InputError unless the storages fill the rest of the file."""
    magic, at = _pickle(read, path, 0, size, _FEW)
    if magic.top != _MAGIC:
        raise NoWeightsError(path, "not a torch checkpoint: it starts with another pickle")
    protocol, at = _pickle(read, path, at, size, _FEW)
    if protocol.top != _PROTOCOL:
        raise InputError(path, "a legacy torch file of an unknown protocol")
    system, at = _pickle(read, path, at, size, _FEW)
    if isinstance(system.top, dict) and system.top.get("little_endian") is False:
        raise big_endian(path)
    start = at
    graph, at = _pickle(read, path, at, size)
    keys, at = _pickle(read, path, at, size, MAX_OPCODES // 4)
    places = _places(read, path, size, graph, keys.top, at)

    def locate(storage: Storage) -> int:
        if isinstance(storage, PickledStorage):
            return start + storage.at
        return places[storage.key] + storage.start * (storage.itemsize or 0)

    return graph, locate


def _places(
    read: Read, path: str, size: int, graph: Graph, keys: object, at: int
) -> dict[str, int]:
    """Where the storages of these ``keys`` lie, the first of them at ``at``."""
    storages: dict[str, Storage] = {}
    for storage in graph.storages:
        if storages.setdefault(storage.key, storage) is not storage:
            raise InputError(path, f"corrupt: two accounts of its storage '{storage.key[:40]}'")
    if not isinstance(keys, list):
        raise InputError(path, "corrupt: its list of storages is none")
    places = dict(_ahead(path, size, keys, storages, at))
    counts = read_places(read, ((start - 8, 8) for start in places.values()))
    for (key, start), (block, place) in zip(places.items(), counts, strict=True):
        storage = storages[key]
        if struct.unpack_from("<q", block, place)[0] != storage.root_numel:
            raise InputError(path, f"corrupt: two sizes of its storage '{key[:40]}'")
        at = start + storage.root_numel * (storage.itemsize or 0)
    if len(places) != len(storages):
        missing = next(key for key in storages if key not in places)
        raise InputError(path, f"its storage '{missing[:40]}' is missing")
    if at != size:
        raise InputError(path, f"{size - at:,} stray bytes follow its last storage")
    return places


def _ahead(
    path: str, size: int, keys: list[object], storages: dict[str, Storage], at: int
) -> Iterator[tuple[str, int]]:
    """Each key with the offset of its first byte, going by the sizes in the pickle."""
    seen = set()
    for key in keys:
        name = key.decode("utf-8", "replace") if isinstance(key, bytes) else key
        storage = storages.get(name) if isinstance(name, str) else None
        if storage is None or storage.key in seen:
            text = name[:40] if isinstance(name, str) else type(name).__name__
            raise InputError(path, f"corrupt: its storage {text!r} is unknown or repeated")
        if storage.itemsize is None:
            raise InputError(path, f"its storages of {storage.kind[:40]} are unknown to swavg")
        nbytes = storage.root_numel * storage.itemsize
        if 8 + nbytes > size - at:
            raise InputError(path, f"truncated: ends inside its storage '{storage.key[:40]}'")
        seen.add(storage.key)
        yield storage.key, at + 8
        at += 8 + nbytes


def _pickle(
    read: Read, path: str, at: int, size: int, max_opcodes: int = MAX_OPCODES
) -> tuple[Graph, int]:
    """The pickle at ``at``, and where it ends."""
    max_memory = MAX_MEMORY * max_opcodes // MAX_OPCODES
    limit = min(size - at, MAX_BYTES)
    window = min(limit, _WINDOW)
    while True:
        data = bytes(read(at, window))
        try:
            graph = unpickle(path, data, max_opcodes=max_opcodes, max_memory=max_memory)
            return graph, at + graph.nbytes
        except TruncatedError:
            if window == limit == size - at:
                raise
            if window == limit:
                raise InputError(
                    path, f"its pickle is corrupt, or larger than {MAX_BYTES >> 20} MiB"
                ) from None
            window = min(limit, 8 * window)
