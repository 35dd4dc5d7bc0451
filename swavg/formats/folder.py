"""Folders as Hugging Face writes them: one file or shards with an index, and side files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from swavg.errors import InputError
from swavg.formats.base import Checkpoint, Tensor
from swavg.formats.files import InputFile, open_input, read_exactly
from swavg.formats.safetensors import Shared, unique

_STEMS = ("model", "diffusion_pytorch_model", "adapter_model", "open_clip_model", "pytorch_model")
_SUFFIXES = (".safetensors", ".bin")
_INDEX_LIMIT = 64 << 20
_INDEX_ENTRIES = 1_000_000

WEIGHT_SUFFIXES = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".tflite",
    ".index.json", ".distcp", ".npz", ".mlmodel",
)  # fmt: skip
"""Files of a folder that hold weights or training state, and are not copied beside an average."""


@dataclass(frozen=True, eq=False)
class FolderCheckpoint(Checkpoint):
    """An opened folder. ``shards`` maps the file names to the names of their tensors, in order;
    ``index_metadata`` is that of the index; ``side_files`` are the names of the other files."""

    shards: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    index_metadata: Mapping[str, object] = field(default_factory=dict)
    side_files: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    index_name: str | None = None

    format = "folder"

    @property
    def stem(self) -> str:
        """``model`` of ``model-00001-of-00002.safetensors``."""
        first = next(iter(self.shards))
        return re.sub(r"(-\d+-of-\d+)?\.[^.]+$", "", first)

    @property
    def suffix(self) -> str:
        """``.safetensors`` or ``.bin``."""
        return os.path.splitext(next(iter(self.shards)))[1]


def is_checkpoint_folder(path: str) -> bool:
    """True if the folder holds weights under a name that :func:`open_folder` finds."""
    try:
        _weights(path)
    except InputError:
        return False
    return True


def open_folder(
    path: str, *, key: str | None = None, shared: Shared | None = None
) -> FolderCheckpoint:
    """Open all shards of the folder ``path``. Raises InputError, naming the file at fault."""
    from swavg.formats import open_checkpoint

    names, index = _weights(path)
    metadata: Mapping[str, object] = {}
    expected: dict[str, str] = {}
    if index is not None:
        metadata, expected = _read_index(path, index)
        names = list(dict.fromkeys(expected.values()))
    files: list[InputFile] = []
    tensors: dict[str, Tensor] = {}
    shards: dict[str, tuple[str, ...]] = {}
    notes: list[str] = []
    header: dict[str, str] = {}
    for name in names:
        full = os.path.join(path, name)
        if index is not None and not os.path.exists(full):
            raise InputError(full, f"missing, though '{index}' lists it")
        if os.path.isdir(full):
            raise InputError(full, "is a folder, where a file with weights is expected")
        shard = open_checkpoint(full, key=key, shared=shared)
        notes += [f"{name}: {note}" for note in shard.notes]
        for text, value in shard.metadata.items():
            header.setdefault(text, value)
        kept = []
        for tensor_name, tensor in shard.tensors.items():
            home = expected.get(tensor_name, name)
            if home != name:
                continue
            if tensor_name in tensors:
                raise InputError(full, f"'{tensor_name}' is also in another shard")
            tensors[tensor_name] = _shifted(tensor, len(files))
            kept.append(tensor_name)
        shards[name] = tuple(kept)
        files += shard.files
    for name, home in expected.items():
        if name not in tensors:
            raise InputError(os.path.join(path, home), f"has no '{name}', though '{index}' says so")
    side, left = _others(path, set(names) | ({index} if index is not None else set()))
    return FolderCheckpoint(
        path, tuple(files), tensors, header, tuple(notes), shards, metadata, side, left, index
    )


def _shifted(tensor: Tensor, by: int) -> Tensor:
    if by == 0:
        return tensor
    return Tensor(tensor.spec, replace(tensor.extent, file=tensor.extent.file + by))


def explain_folder(path: str, present: Collection[str]) -> None:
    """Raise InputError if a folder of these names holds a checkpoint of a kind, or in a state,
    that is not read."""
    if ".metadata" in present and any(name.endswith(".distcp") for name in present):
        raise InputError(
            path,
            "is a distributed checkpoint, which swavg does not read yet",
            hint="Convert it with torch.distributed.checkpoint.format_utils.dcp_to_torch_save.",
        )
    shards = [name for name in present if re.search(r"-\d+-of-\d+\.(safetensors|bin)$", name)]
    if shards:
        raise InputError(path, f"has {len(shards)} shards but no index (*.index.json)")


def _weights(path: str) -> tuple[list[str], str | None]:
    """The weight files of a folder, or the name of its index."""
    try:
        present = set(os.listdir(path))
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from None
    for suffix in _SUFFIXES:
        for stem in _STEMS:
            if f"{stem}{suffix}" in present:
                return [f"{stem}{suffix}"], None
            if f"{stem}{suffix}.index.json" in present:
                return [], f"{stem}{suffix}.index.json"
    indices = sorted(name for name in present if name.endswith(".safetensors.index.json"))
    if len(indices) == 1:
        return [], indices[0]
    singles = sorted(name for name in present if name.endswith(".safetensors"))
    if len(singles) == 1:
        return singles, None
    explain_folder(path, present)
    raise InputError(
        path,
        "is a folder without model.safetensors, pytorch_model.bin or an index of shards",
        hint="Give the checkpoint files themselves.",
    )


def _read_index(folder: str, name: str) -> tuple[Mapping[str, object], dict[str, str]]:
    path = os.path.join(folder, name)
    with open_input(path) as (fd, file):
        if file.size > _INDEX_LIMIT:
            raise InputError(path, f"has {file.size:,} bytes, more than an index could need")
        text = bytes(read_exactly(fd, file, 0, file.size))
    if text.count(b",") + text.count(b"[") + text.count(b"{") > _INDEX_ENTRIES:
        raise InputError(path, f"lists more than {_INDEX_ENTRIES:,} tensors")
    try:
        content = json.loads(text, object_pairs_hook=lambda pairs: unique(path, pairs))
        weight_map = content["weight_map"]
        metadata = content.get("metadata", {})
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        raise InputError(path, "is no index: JSON with a 'weight_map' is expected") from None
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(metadata, dict):
        raise InputError(path, "its 'weight_map' does not map tensor names to file names")
    for shard in set(map(str, weight_map.values())):
        if shard in ("", ".", "..") or "/" in shard or "\\" in shard or "\0" in shard:
            raise InputError(path, f"lists the shard {shard!r}, which is no plain file name")
    if not all(isinstance(shard, str) for shard in weight_map.values()):
        raise InputError(path, "its 'weight_map' does not map tensor names to file names")
    return metadata, weight_map


def _others(path: str, weights: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Side files to copy beside an average, and what is left out: other weights, folders."""
    side, left = [], []
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        if entry.name in weights:
            continue
        weighty = entry.name.endswith(WEIGHT_SUFFIXES) or entry.name.startswith("rng_state")
        if entry.is_file() and not weighty and not entry.name.endswith(".swavg-partial"):
            side.append(entry.name)
        else:
            left.append(entry.name)
    return tuple(side), tuple(left)


def weights_stem(name: str) -> str | None:
    """``model`` for any name of that checkpoint's weights and index; None for another file."""
    found = re.fullmatch(r"(.+?)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?", name)
    return found[1] if found else None


def shard_names(stem: str, suffix: str, count: int) -> Sequence[str]:
    """File names of ``count`` shards, as Hugging Face numbers them."""
    if count == 1:
        return (f"{stem}{suffix}",)
    return tuple(f"{stem}-{index:05d}-of-{count:05d}{suffix}" for index in range(1, count + 1))
