"""Where outputs go, and of which format they are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from swavg.errors import RequestError
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.table import FORMATS
from swavg.storage.destination import is_stream


@dataclass(frozen=True, slots=True)
class Target:
    """Where an output goes (``path`` is None for standard output), the name of its format, and
    whether it may replace what is there. Of a composite it is the ``part`` of this name (empty:
    what lies in the folder itself), with which ``side_files`` go along."""

    path: str | None
    format: str
    force: bool = False
    part: str | None = None
    side_files: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> bool:
        return self.format == "folder" or self.part is not None


_NOT_WRITTEN = (
    ".npz", ".npy", ".onnx", ".h5", ".hdf5", ".keras", ".gguf", ".msgpack", ".nemo", ".tflite",
)  # fmt: skip
"""Suffixes of other kinds of files, which would be something else than they say."""


def default_path(first: Checkpoint, max_shard_size: int | None = None) -> str:
    """``averaged`` with the suffix of the first input; a folder ``averaged`` for folders, and if
    shards are asked for."""
    if first.format == "folder" or max_shard_size is not None:
        return "averaged"
    return f"averaged{suffix_of(first.path)}"


def suffix_of(path: str) -> str:
    """The suffix that names a format: ``.pth.tar``, ``.pt``; empty for ``ckpt-1.5``."""
    name = os.path.basename(path.rstrip("/"))
    if name.endswith(".pth.tar"):
        return ".pth.tar"
    suffix = os.path.splitext(name)[1]
    return "" if suffix[1:].isdigit() else suffix


def choose_target(
    path: str | None, first: Checkpoint, max_shard_size: int | None, *, force: bool = False
) -> Target:
    """The output that ``path`` asks for: of the format of its suffix, else of the first input's."""
    if path is None:
        if max_shard_size is not None:
            raise RequestError("Standard output takes one file: leave max_shard_size= out.")
        return Target(None, "safetensors")
    bare = path.rstrip("/") or path
    if bare.lower().endswith(_NOT_WRITTEN):
        raise RequestError(
            f"swavg does not write {os.path.splitext(bare)[1]} files.",
            hint=f"Give {os.path.splitext(bare)[0]}.safetensors or .pt, and convert that.",
        )
    named = _named(bare)
    if os.path.isdir(bare) and first.format != "folder" and max_shard_size is None:
        # As cp does: a file goes into an existing folder.
        return choose_target(os.path.join(bare, default_path(first)), first, None, force=force)
    own = writable(first.format)
    if is_stream(bare):
        # A FIFO or a device takes one file.
        return Target(bare, named or ("safetensors" if own == "folder" else own), force)
    if path.endswith("/") or os.path.isdir(bare) or max_shard_size is not None:
        if named is not None and not os.path.isdir(bare):
            raise RequestError(
                f"A folder of shards cannot be named '{bare}'.",
                hint="Give a name without a suffix, or leave max_shard_size= out.",
            )
        return Target(bare, "folder", force)
    return Target(bare, named or own, force)


def names_file(path: str) -> bool:
    """Whether a path that is no folder has the suffix of a format of files."""
    return _named(path.rstrip("/")) is not None and not os.path.isdir(path)


def _named(path: str) -> str | None:
    """The format that the suffix of a path names."""
    suffix = os.path.splitext(path)[1].lower()
    return next((row.name for row in FORMATS.values() if suffix in row.suffixes), None)


def writable(name: str) -> str:
    """The format that an output like an input of this one gets."""
    return name if FORMATS[name].lay_out is not None else "torch"
