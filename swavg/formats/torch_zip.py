"""torch zip checkpoints (.pt, .pth, .bin, .ckpt; torch 1.6 and later), read without torch."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from swavg.errors import InputError
from swavg.formats.base import Checkpoint, Task, TensorSpec
from swavg.formats.files import FilePool, open_input
from swavg.formats.torch_frames import Member, TorchZipLayout, archive_size
from swavg.formats.torch_pickle import MAX_BYTES, read_pickle
from swavg.formats.torch_plain import RECIPE, lay_out_plain, recipe_member
from swavg.formats.torch_records import Record, read_records, torchscript
from swavg.formats.torch_state import find_state
from swavg.formats.torch_template import check_written, replacements, spliced
from swavg.formats.torch_tensors import tensors_of
from swavg.formats.torch_values import Storage

__all__ = [
    "TorchTemplateLayout",
    "TorchZipCheckpoint",
    "lay_out_like",
    "lay_out_plain",
    "looks_like_torch_zip",
    "open_torch_zip",
    "recorded_recipe",
]


# Padding is an extra field, whose length is a 16-bit number.
_MAX_ALIGNMENT = 1 << 15


def looks_like_torch_zip(head: bytes) -> bool:
    """Whether a file that starts with ``head`` is a zip: what torch has written since 1.6."""
    return head.startswith(b"PK\3\4")


@dataclass(frozen=True, eq=False)
class TorchZipCheckpoint(Checkpoint):
    """An opened torch zip. ``root_key`` is the dotted path of the state dict in the file's object
    (empty: the top level), which was found by itself or under the ``key`` that was asked for;
    ``other_entries`` the top-level keys beside it, ``non_tensors`` what it
    holds besides tensors, ``scalars`` the plain top-level values (epoch, global_step).
    ``records`` are in the order of the file, in the folder ``root``."""

    key: str | None = None
    root_key: str = ""
    other_entries: tuple[str, ...] = ()
    non_tensors: tuple[str, ...] = ()
    scalars: Mapping[str, int | float | str] = field(default_factory=dict)
    records: tuple[Record, ...] = ()
    root: str = ""
    alignment: int = 64

    format = "torch"


def open_torch_zip(path: str, key: str | None = None) -> TorchZipCheckpoint:
    """Open the torch zip at ``path``; ``key`` is the dotted path of the state dict in it.

    Nothing of the file is run. InputError if it is damaged, unsafe, or not such a file.
    """
    with open_input(path) as (fd, file):
        records = read_records(fd, file)
        archive = _Archive(path, fd, records)
        top, room, storages = archive.unpickled()
    for storage in storages:
        archive.check(storage)
    state = find_state(path, top, room, key)
    tensors = tensors_of(path, state, lambda storage: archive.storage(storage).offset)
    return TorchZipCheckpoint(
        path,
        (file,),
        tensors,
        notes=state.notes,
        key=key,
        root_key=state.root_key,
        other_entries=state.other_entries,
        non_tensors=state.non_tensors,
        scalars=state.scalars,
        records=records,
        root=archive.root,
        alignment=archive.alignment,
    )


class _Archive:
    """The records of one file by their names in its only folder."""

    def __init__(self, path: str, fd: int, records: tuple[Record, ...]) -> None:
        self.path = path
        self._fd = fd
        root, slash, _ = records[0].name.partition("/") if records else ("", "", "")
        self.root = root
        self._records = {record.name: record for record in records}
        if any(name.startswith(f"{root}/code/") for name in self._records) or self._has(
            "constants.pkl"
        ):
            raise torchscript(path)
        if not slash or not self._has("data.pkl"):
            raise InputError(path, "a zip, but no torch checkpoint (it has no data.pkl)")
        if any(not name.startswith(f"{root}/") for name in self._records):
            raise InputError(path, "its zip has records outside its folder")
        if self._has("byteorder") and self._small("byteorder") != b"little":
            raise InputError(path, "written on a big-endian machine, which swavg does not read")
        self.alignment = 64
        if self._has(".storage_alignment"):
            text = self._small(".storage_alignment")
            if not text.isdigit() or not 0 < int(text) <= 1 << 30:
                raise InputError(path, "corrupt: its storage alignment is no number")
            self.alignment = int(text)

    def _has(self, name: str) -> bool:
        return f"{self.root}/{name}" in self._records

    def _small(self, name: str) -> bytes:
        record = self._records[f"{self.root}/{name}"]
        return os.pread(self._fd, min(record.size, 64), record.offset)

    def unpickled(self) -> tuple[Any, int, list[Storage]]:
        """The object of data.pkl, the size of that in bytes, and the storages it names."""
        record = self._records[f"{self.root}/data.pkl"]
        if record.size > MAX_BYTES:
            raise InputError(self.path, f"its pickle is larger than {MAX_BYTES >> 20} MiB")
        # One file object over a duplicate descriptor: its buffer spares a copy of the pickle.
        with io.FileIO(os.dup(self._fd), "rb") as raw:
            raw.seek(record.offset)
            with io.BufferedReader(raw, 1 << 16) as source:
                top, unpickler = read_pickle(self.path, source, record.size)
        return top, record.size, list(unpickler.storages.values())

    def storage(self, storage: Storage) -> Record:
        record = self._records.get(f"{self.root}/data/{storage.key}")
        if record is None:
            raise InputError(self.path, f"its storage '{storage.key[:40]}' is missing")
        return record

    def check(self, storage: Storage) -> None:
        """The record of ``storage`` is there and has just the size that the pickle says."""
        record = self.storage(storage)
        itemsize = storage.itemsize
        if itemsize is not None and record.size != storage.root_numel * itemsize:
            raise InputError(
                self.path,
                f"its storage '{storage.key[:40]}' has {record.size:,} bytes, not"
                f" {storage.root_numel:,} elements of {itemsize}",
            )


@dataclass(frozen=True)
class TorchTemplateLayout(TorchZipLayout):
    """All records of a template in their order, with other bytes in its averaged tensors."""

    specs: tuple[TensorSpec, ...] = ()
    key: str | None = None

    def verify(self, path: str) -> None:
        check_written(path, lambda: open_torch_zip(path, self.key), self.specs)


def lay_out_like(
    template: TorchZipCheckpoint,
    template_input: int,
    tasks: Sequence[Task],
    name: str,
    recipe: bytes | None,
) -> TorchTemplateLayout | str:
    """``template`` (the input of index ``template_input``) with the bytes of ``tasks`` in place of
    its tensors and every other record as it is; or the reason why that cannot be.

    Whatever else the file keeps in the storage of an averaged tensor changes with it.
    """
    replaced = replacements(template, template_input, tasks)
    if isinstance(replaced, str):
        return replaced
    if template.alignment > _MAX_ALIGNMENT:
        return f"its records are aligned to {template.alignment:,} bytes"
    own = f"{template.root}/{RECIPE}"
    kept = [record for record in template.records if recipe is None or record.name != own]
    pieces = [
        piece
        for record in kept
        for piece in spliced(template_input, record.offset, record.size, replaced)
    ]
    members = (
        *(Member(record.name, record.size) for record in kept),
        *recipe_member(template.root, recipe),
    )
    return TorchTemplateLayout(
        name,
        archive_size(members, template.alignment),
        tuple(pieces),
        members,
        template.alignment,
        tuple(template.specs.values()),
        template.key,
    )


def recorded_recipe(checkpoint: Checkpoint) -> str | None:
    """The recipe that swavg added to a torch zip, as text; None if there is none."""
    if not isinstance(checkpoint, TorchZipCheckpoint):
        return None
    for record in checkpoint.records:
        if record.name == f"{checkpoint.root}/{RECIPE}":
            with FilePool() as pool:
                data = pool.read(checkpoint.files[0], record.offset, record.size)
            return data.decode(errors="replace")
    return None
