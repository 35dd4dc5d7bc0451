"""Folders of one file of weights, or of shards with an index as Hugging Face writes them, and of
side files."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from swavg.errors import InputError
from swavg.formats import strict_json
from swavg.formats.checkpoint import Checkpoint, Extras
from swavg.formats.configuration import (
    is_configuration,
    is_training_state,
)
from swavg.formats.dcp.place import DATA, unfinished
from swavg.formats.files import open_file, recognised
from swavg.formats.layout import Format, Later
from swavg.formats.part_names import WEIGHTS, is_plain_name
from swavg.formats.records import Record
from swavg.formats.tensors import Shared, TableBuilder
from swavg.storage.paths import exists, find_file, is_file, is_folder, names_in, read_file
from swavg.storage.sources import Source
from swavg.storage.temporary import TEMPORARY

_STEMS = ("model", "diffusion_pytorch_model", "adapter_model", "open_clip_model", "pytorch_model")
_INDEX_LIMIT = 64 << 20
_INDEX_ENTRIES = 1_000_000
BY_SUFFIX = {".safetensors": "safetensors", ".bin": "torch"}
"""Which format the shards of a folder have."""
_LONE = (*WEIGHTS[1:], ".pth.tar")
"""How the one torch file of a folder may end."""
_OF_OTHERS = (".npz", ".h5", ".hdf5", ".keras", ".msgpack")
"""Files that are read if they are given themselves."""

VARIANTS = tuple(
    f".index.{name}.json" for name in ("fp16", "bf16", "fp32", "fp8", "ema", "non_ema")
)
"""How indices of the same weights in another form end (``model.safetensors.index.fp16.json``)."""

WEIGHT_SUFFIXES = (
    *VARIANTS,
    *WEIGHTS, *_OF_OTHERS, ".onnx", ".gguf", ".tflite",
    ".index.json", ".distcp", ".npy", ".pkl", ".mlmodel",
)  # fmt: skip
"""Files of a folder that hold weights or training state, and are not copied beside an average."""

LOGS = (
    "trainer_state.json", "all_results.json", "train_results.json", "eval_results.json",
    "test_results.json", "predict_results.json",
)  # fmt: skip
"""What a trainer has logged of the one checkpoint: it does not hold for an average."""


def is_checkpoint_folder(path: str, *, any_name: bool = True) -> bool:
    """True if the folder holds weights that :func:`open_folder` finds. ``any_name``: also by being
    the only ones beside configuration."""
    try:
        names, _ = _weights(hub_snapshot(path))
    except InputError:
        return False
    return any_name or not names or is_usual(names[0])


def lone_weights(path: str) -> str | None:
    """The one file of weights that a folder is a checkpoint by, if it has no usual name."""
    try:
        names, _ = _weights(hub_snapshot(path))
    except InputError:
        return None
    return names[0] if names and os.path.splitext(names[0])[0] not in _STEMS else None


def is_usual(name: str) -> bool:
    """Whether a library gives this name to the weights of a folder."""
    stem, suffix = os.path.splitext(name)
    return suffix == ".safetensors" or (suffix in BY_SUFFIX and stem in _STEMS)


def hub_snapshot(path: str) -> str:
    """The snapshot that ``refs/main`` names, if ``path`` is a repository in the cache of a hub
    (``models--ORG--NAME``), or the only one there; any other path as it is. InputError if it cannot
    be told which is meant."""
    snapshots, main = os.path.join(path, "snapshots"), os.path.join(path, "refs", "main")
    # First of all whether it is a file: what is said of a server that does not answer names it.
    if is_file(path) or not (is_folder(snapshots) and is_folder(os.path.dirname(main))):
        return path
    present = names_in(snapshots)
    commit = read_file(main, 64).decode(errors="replace").strip() if is_file(main) else None
    if commit not in present:
        if len(present) != 1:
            raise InputError(
                path,
                f"is a cached repository with {len(present)} snapshots, and refs/main names none",
                hint=f"Give one of them: {os.path.join(snapshots, present[0])}"
                if present
                else None,
            )
        commit = present[0]
    return os.path.join(snapshots, commit)


def open_folder(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    """Open all shards of the folder ``path``, or of the snapshot in it if it is a repository in the
    cache of a hub. Raises InputError, naming the file at fault."""
    path = hub_snapshot(path)
    names, index = _weights(path)
    index_metadata: Mapping[str, object] = {}
    expected: dict[str, str] = {}
    if index is not None:
        index_metadata, expected = _read_index(path, index)
        names = list(dict.fromkeys(expected.values()))
    sources: list[Source] = []
    shards: dict[str, tuple[str, ...]] = {}
    records: dict[int, Iterable[Record]] = {}
    notes: list[str] = []
    metadata: dict[str, str] = {}
    builder = TableBuilder()
    seen: set[str] = set()
    recipe = None
    for name in names:
        full = os.path.join(path, name)
        shard = _open_shard(full, index, key, shared)
        notes += [f"{name}: {note}" for note in shard.notes]
        recipe = recipe or shard.extras.recipe
        for text, value in shard.metadata.items():
            metadata.setdefault(text, value)
        kept = []
        for number, tensor_name in enumerate(shard.tensors):
            if expected.get(tensor_name, name) != name:
                continue
            if tensor_name in seen:
                raise InputError(full, f"'{tensor_name}' is also in another shard")
            seen.add(tensor_name)
            kept.append(tensor_name)
            builder.add_of(shard.tensors, number, len(sources))
        shards[name] = tuple(kept)
        for source, stretches in shard.extras.records.items():
            records[len(sources) + source] = stretches
        sources += shard.sources
    for name, home in expected.items():
        if name not in seen:
            raise InputError(os.path.join(path, home), f"has no '{name}', though '{index}' says so")
    side, left_out = _others(path, set(names) | ({index} if index is not None else set()))
    extras = replace(
        # All else that a single file holds is kept with it.
        shard.extras if len(names) == 1 else Extras(),
        recipe=recipe,
        records=records,
        shards=shards,
        index=index,
        index_metadata=index_metadata,
        side_files=side,
        left_out=left_out,
    )
    table = builder.build(shared)
    return Checkpoint(path, "folder", tuple(sources), table, metadata, tuple(notes), extras)


def recipe_in(path: str) -> str | None:
    """What swavg wrote of an average into the weights of a folder. InputError."""
    path = hub_snapshot(path)
    names, index = _weights(path)
    if index is not None:
        names = list(_read_index(path, index)[1].values())
    file = os.path.join(path, names[0])
    row = recognised(file)
    return None if row is None else row.recipe_in(file)


def _open_shard(path: str, index: str | None, key: str | None, shared: Shared | None) -> Checkpoint:
    if index is not None and not exists(path):
        raise InputError(path, f"missing, though '{index}' lists it")
    if is_folder(path):
        raise InputError(path, "is a folder, where a file with weights is expected")
    return open_file(path, key, shared)


def explain_folder(path: str, present: Collection[str]) -> None:
    """Raise InputError if a folder of these names holds a checkpoint of a kind, or in a state,
    that is not read."""
    if any(name.endswith(DATA) for name in present):
        raise unfinished(path)
    shards = [name for name in present if re.search(r"-\d+-of-\d+\.(safetensors|bin)$", name)]
    if shards:
        raise InputError(path, f"has {len(shards)} shards but no index (*.index.json)")


def explain_files(path: str, present: Iterable[str]) -> None:
    """Raise InputError if a file of these names in a folder is of a format that is not read."""
    from swavg.formats.foreign import explain_name

    for name in sorted(present):
        if (known := explain_name(os.path.join(path, name))) is not None:
            raise known


def _weights(path: str) -> tuple[list[str], str | None]:
    """The weight files of a folder, or the name of its index."""
    present = set(names_in(path))
    for suffix in BY_SUFFIX:
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
    variants = [name for name in present if name.endswith(VARIANTS)]
    if len(variants) == 1:
        return [], variants[0]
    explain_folder(path, present)
    lone = [name for name in present if name.endswith(_LONE) and not is_training_state(name)]
    if len(lone) == 1 and any(map(is_configuration, present)):
        return lone, None
    files = sorted(name for name in present if name.endswith((*_LONE, ".safetensors", *_OF_OTHERS)))
    if not files:
        explain_files(path, present)
    raise InputError(
        path,
        "is a folder without model.safetensors, pytorch_model.bin or an index of shards",
        hint="Give the checkpoint files themselves" + (f", such as {files[0]}." if files else "."),
    )


def _read_index(folder: str, name: str) -> tuple[Mapping[str, object], dict[str, str]]:
    path = os.path.join(folder, name)
    file = find_file(path)
    if file.size > _INDEX_LIMIT:
        raise InputError(path, f"has {file.size:,} bytes, more than an index could need")
    text = read_file(path)
    if text.count(b",") + text.count(b"[") + text.count(b"{") > _INDEX_ENTRIES:
        raise InputError(path, f"lists more than {_INDEX_ENTRIES:,} tensors")
    try:
        content = strict_json.loads(path, text)
        weight_map = content["weight_map"]
        metadata = content.get("metadata", {})
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        raise InputError(path, "is no index: JSON with a 'weight_map' is expected") from None
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(metadata, dict):
        raise InputError(path, "its 'weight_map' does not map tensor names to file names")
    for shard in set(map(str, weight_map.values())):
        if not is_plain_name(shard):
            raise InputError(path, f"lists the shard {shard!r}, which is no plain file name")
    if not all(isinstance(shard, str) for shard in weight_map.values()):
        raise InputError(path, "its 'weight_map' does not map tensor names to file names")
    return metadata, weight_map


def _others(path: str, weights: set[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Side files to copy beside an average, and what is left out: other weights, folders."""
    side, left_out = {}, []
    for name in names_in(path):
        if name in weights:
            continue
        full = os.path.join(path, name)
        goes_along = not (
            name.endswith((*WEIGHT_SUFFIXES, TEMPORARY))
            or name.startswith("rng_state")
            or name in LOGS
        )
        if goes_along and is_file(full):
            side[name] = full
        else:
            left_out.append(name)
    return side, tuple(left_out)


def weights_stem(name: str) -> str | None:
    """``model`` for any name of that checkpoint's weights and index; None for another file."""
    found = re.fullmatch(r"(.+?)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?", name)
    return found[1] if found else None


FORMAT = Format(
    "folder", (), lambda head: False, open_folder, Later("folder_layout:lay_out"),
    recipe_in=recipe_in, folder=True,
)  # fmt: skip
