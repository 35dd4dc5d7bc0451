"""Legacy torch checkpoints (before 1.6): consecutive pickles, then the bytes of the storages.

The pickles are a magic number, the protocol, facts of the system, the object, and the storages'
keys; then per key an int64 count of elements and their bytes. A template's head is kept byte for
byte, so everything but the averaged tensors survives.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from swavg.errors import InputError
from swavg.formats.base import Buffer, Checkpoint, Layout, Task, TensorSpec
from swavg.formats.files import open_input
from swavg.formats.torch_pickle import read_pickle
from swavg.formats.torch_state import find_state
from swavg.formats.torch_template import check_written, replacements, spliced
from swavg.formats.torch_tensors import tensors_of
from swavg.formats.torch_values import Storage

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MAGIC_OPCODE = b"\x8a\x0a" + _MAGIC.to_bytes(10, "little")


def looks_like_torch_legacy(head: bytes) -> bool:
    """Whether a file that starts with ``head`` (64 bytes do) is a legacy torch checkpoint."""
    return head.startswith(b"\x80") and _MAGIC_OPCODE in head[:32]


def looks_like_torch_tar(head: bytes) -> bool:
    """Whether ``head`` (at least 262 bytes) starts a tar archive: torch 0.1 wrote such files."""
    return head[257:262] == b"ustar"


@dataclass(frozen=True, eq=False)
class TorchLegacyCheckpoint(Checkpoint):
    """An opened legacy file; the fields are those of ``TorchZipCheckpoint``."""

    key: str | None = None
    root_key: str = ""
    other_entries: tuple[str, ...] = ()
    non_tensors: tuple[str, ...] = ()
    scalars: Mapping[str, int | float | str] = field(default_factory=dict)

    format = "torch-legacy"


def open_torch_legacy(path: str, key: str | None = None) -> TorchLegacyCheckpoint:
    """Open the legacy torch file at ``path``; ``key`` is the dotted path of the state dict in it.

    Nothing of the file is run. InputError if it is damaged, unsafe, or not such a file.
    """
    with open_input(path) as (fd, file), open(fd, "rb", closefd=False) as source:
        if looks_like_torch_tar(os.pread(fd, 512, 0)):
            raise InputError(
                path,
                "a tar archive, as torch 0.1 wrote it",
                hint="Load it with an old torch and save it again with torch.save.",
            )
        top, room, storages = _head(path, source, file.size)
        places = _places(path, source, file.size, storages)
    state = find_state(path, top, room, key)
    tensors = tensors_of(
        path, state, lambda storage: places[storage.key] + storage.start * (storage.itemsize or 0)
    )
    return TorchLegacyCheckpoint(
        path,
        (file,),
        tensors,
        notes=state.notes,
        key=key,
        root_key=state.root_key,
        other_entries=state.other_entries,
        non_tensors=state.non_tensors,
        scalars=state.scalars,
    )


def _head(path: str, source: BinaryIO, size: int) -> tuple[Any, int, list[Storage]]:
    """The object, the size of its pickle, and the storages it names."""
    magic, _ = read_pickle(path, source, size)
    if magic != _MAGIC:
        raise InputError(path, "not a torch checkpoint: it starts with another pickle")
    protocol, _ = read_pickle(path, source, size - source.tell())
    if protocol != _PROTOCOL:
        raise InputError(path, "a legacy torch file of an unknown protocol")
    system, _ = read_pickle(path, source, size - source.tell())
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise InputError(path, "written on a big-endian machine, which swavg does not read")
    top, unpickler = read_pickle(path, source, size - source.tell())
    return top, unpickler.used, list(unpickler.storages.values())


def _places(path: str, source: BinaryIO, size: int, storages: list[Storage]) -> dict[str, int]:
    """The file offset of each storage's first byte, by key."""
    keys, _ = read_pickle(path, source, size - source.tell())
    by_key: dict[str, Storage] = {}
    for storage in storages:
        if by_key.setdefault(storage.key, storage) != storage:
            raise InputError(path, f"corrupt: two accounts of its storage '{storage.key[:40]}'")
    if not isinstance(keys, list):
        raise InputError(path, "corrupt: its list of storages is none")
    places: dict[str, int] = {}
    for key in keys:
        key = key.decode("utf-8", "replace") if isinstance(key, bytes) else key
        found = by_key.get(key) if isinstance(key, str) else None
        if found is None or key in places:
            raise InputError(path, f"corrupt: its storage {str(key)[:40]!r} is unknown or repeated")
        if found.itemsize is None:
            raise InputError(path, f"its storages of {found.kind[:40]} are unknown to swavg")
        raw = source.read(8)
        at = source.tell()
        nbytes = found.root_numel * found.itemsize
        if len(raw) < 8 or nbytes > size - at:
            raise InputError(path, f"truncated: ends inside its storage '{key[:40]}'")
        if struct.unpack("<q", raw)[0] != found.root_numel:
            raise InputError(path, f"corrupt: two sizes of its storage '{key[:40]}'")
        places[key] = at
        source.seek(at + nbytes)
    if len(places) != len(by_key):
        missing = next(key for key in by_key if key not in places)
        raise InputError(path, f"its storage '{missing[:40]}' is missing")
    if source.tell() != size:
        raise InputError(path, f"{size - source.tell():,} stray bytes follow its last storage")
    return places


@dataclass(frozen=True)
class TorchLegacyLayout(Layout):
    """A copy of a legacy file with other bytes in its averaged tensors."""

    specs: tuple[TensorSpec, ...] = ()
    key: str | None = None

    format = "torch-legacy"
    joined = True

    def frame(self, chunks: Iterator[memoryview]) -> Iterator[Buffer]:
        yield from chunks

    def verify(self, path: str) -> None:
        check_written(path, lambda: open_torch_legacy(path, self.key), self.specs)


def lay_out_like(
    template: TorchLegacyCheckpoint,
    template_input: int,
    tasks: Sequence[Task],
    name: str,
    recipe: bytes | None = None,
) -> TorchLegacyLayout | str:
    """``template`` with the bytes of ``tasks`` in place of its tensors, all else as it is;
    or the reason why that cannot be. The format has no place for a ``recipe``."""
    replaced = replacements(template, template_input, tasks)
    if isinstance(replaced, str):
        return replaced
    pieces = spliced(template_input, 0, template.size, replaced)
    return TorchLegacyLayout(
        name, template.size, pieces, tuple(template.specs.values()), template.key
    )
