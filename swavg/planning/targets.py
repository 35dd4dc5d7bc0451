"""Where outputs go, and of which format they are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from swavg.errors import RequestError
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.files import FILES
from swavg.formats.table import FORMATS
from swavg.planning.policy import Policy
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
        return FORMATS[self.format].folder or self.part is not None


_EXPORTED = "Give STEM.safetensors or .pt, load that into the model, and export it again."
_NOT_WRITTEN = {
    ".npy": "Give STEM.npz: one array holds no names.",
    ".msgpack": "Give STEM.safetensors, which Flax reads so:\n"
    "from flax.traverse_util import unflatten_dict; from safetensors.flax import load_file\n"
    "params = unflatten_dict(load_file('STEM.safetensors'), sep='.')",
    ".distcp": "Give the name of a folder, and format=dcp.",
    ".index": "Give the name of a folder, and format=tensorflow.",
    ".pkl": "Give STEM.safetensors, .npz or .pt.",
    ".onnx": _EXPORTED, ".gguf": _EXPORTED, ".nemo": _EXPORTED, ".tflite": _EXPORTED,
}  # fmt: skip
"""Suffixes of other kinds of files, which would be something else than they say, and what to do
instead; a pickle is one that torch writes."""


def default_path(name: str, first: Checkpoint, policy: Policy) -> str:
    """``name`` with the suffix that an output has if nobody gives it one."""
    _check_format(policy.format, shards=policy.max_shard_size is not None)
    return f"{name}{default_suffix(first.path, first.format, policy)}"


def default_suffix(path: str, format: str, policy: Policy) -> str:
    """The suffix of the first input, at ``path``, or of the format that is asked for; empty where
    that is a folder."""
    own = policy.format or writable(format)
    if FORMATS[own].folder or policy.max_shard_size is not None:
        return ""
    suffix, row = suffix_of(path), FORMATS[own]
    # A file of a format without suffixes may have none.
    none = format in FILES and not FILES[format].suffixes
    kept = ("", *row.suffixes) if none else row.suffixes
    if policy.format is not None or (own != format and suffix not in kept):
        suffix = row.suffixes[0]
    return suffix


def suffix_of(path: str) -> str:
    """The suffix that names a format: ``.weights.h5``, ``.pt``; empty for ``ckpt-1.5``."""
    name = os.path.basename(path.rstrip("/"))
    for double in (".pth.tar", ".weights.h5"):
        if name.endswith(double):
            return double
    suffix = os.path.splitext(name)[1]
    return "" if suffix[1:].isdigit() else suffix


def choose_target(
    path: str | None,
    first: Checkpoint,
    policy: Policy,
    *,
    name: str = "averaged",
    force: bool = False,
) -> Target:
    """The output that ``path`` asks for: of the format asked for, or of its suffix, else of the
    first input's. In a folder that is there a file has this ``name``. RequestError for what is not
    written, or no such place."""
    shards, asked = policy.max_shard_size is not None, policy.format
    _check_format(asked, shards=shards)
    if path is None:
        if shards or (asked is not None and FORMATS[asked].folder):
            wanted = "max_shard_size=" if shards else f"format={asked}"
            raise RequestError(f"Standard output takes one file: leave {wanted} out.")
        return Target(None, asked or "safetensors")
    bare = path.rstrip("/") or path
    suffix = os.path.splitext(bare)[1]
    named = format_named(bare)
    if asked is not None and named not in (None, asked):
        raise RequestError(
            f"'{bare}' has the suffix of {named} files, and format={asked} is asked for."
        )
    own = asked or writable(first.format)
    hint = _NOT_WRITTEN.get(suffix.lower())
    if hint is None and named is not None and FORMATS[named].lay_out is None:
        hint = "Give STEM.safetensors or .pt."
    if hint is not None and (suffix.lower() != ".pkl" or own != "torch"):
        hint = hint.replace("STEM", os.path.splitext(bare)[0])
        raise RequestError(f"swavg does not write {suffix} files.", hint=hint)
    ambiguous = suffix.lower() in FORMATS[first.format].ambiguous
    if asked is None and ambiguous and not os.path.isdir(bare):
        raise RequestError(
            f"'{bare}' would be a {named} file, and the inputs are of {first.format}.",
            hint=f"Give a name without a suffix for one of {first.format}, or format={named}.",
        )
    if os.path.isdir(bare) and not FORMATS[own].folder and not shards:
        # As cp does: a file goes into an existing folder.
        inside = os.path.join(bare, default_path(name, first, policy))
        return choose_target(inside, first, policy, name=name, force=force)
    if is_stream(bare):
        # A FIFO or a device takes one file.
        return Target(bare, named or ("safetensors" if FORMATS[own].folder else own), force)
    if path.endswith("/") or os.path.isdir(bare) or shards:
        if named is not None and not os.path.isdir(bare):
            raise RequestError(
                f"A folder of shards cannot be named '{bare}'.",
                hint="Give a name without a suffix, or leave max_shard_size= out.",
            )
        return Target(bare, own if FORMATS[own].folder and not shards else "folder", force)
    return Target(bare, named or own, force)


def _check_format(asked: str | None, *, shards: bool) -> None:
    written = [name for name, row in FORMATS.items() if row.lay_out is not None]
    if asked is not None and asked not in written:
        raise RequestError(
            f"format={asked} is not written.", hint=f"It can be {', '.join(written)}."
        )
    if asked not in (None, "folder") and shards:
        raise RequestError(f"Shards are a folder of their own: leave format={asked} out.")


def names_file(path: str) -> bool:
    """Whether a path that is no folder has the suffix of a format of files."""
    return format_named(path.rstrip("/")) is not None and not os.path.isdir(path)


def format_named(path: str) -> str | None:
    """The format that the suffix of a path names; None if it names none."""
    suffix = os.path.splitext(path)[1].lower()
    return next((row.name for row in FORMATS.values() if suffix in row.suffixes), None)


def writable(name: str) -> str:
    """The format that an output like an input of this one gets."""
    row = FORMATS[name]
    return name if row.lay_out is not None else row.instead
