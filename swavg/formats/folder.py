"""Folders of one file of weights, or of shards with an index as Hugging Face writes them, and of
side files."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from swavg.errors import InputError
from swavg.formats import strict_json
from swavg.formats.checkpoint import Checkpoint, Extras
from swavg.formats.configuration import (
    is_configuration,
    is_training_state,
    with_written_dtypes,
)
from swavg.formats.dcp.place import DATA, unfinished
from swavg.formats.files import FILES, open_file, recognised
from swavg.formats.hashes import is_stale, stale_notes
from swavg.formats.layout import Format, Layout, WriteRequest, losses
from swavg.formats.part_names import WEIGHTS
from swavg.formats.records import Record
from swavg.formats.tensors import Shared, TableBuilder
from swavg.storage.paths import exists, find_file, is_file, is_folder, names_in, read_file
from swavg.storage.sources import Source
from swavg.storage.temporary import TEMPORARY

_STEMS = ("model", "diffusion_pytorch_model", "adapter_model", "open_clip_model", "pytorch_model")
_INDEX_LIMIT = 64 << 20
_INDEX_ENTRIES = 1_000_000
_BY_SUFFIX = {".safetensors": "safetensors", ".bin": "torch"}
"""Which format the shards of a folder have."""
_LONE = (*WEIGHTS[1:], ".pth.tar")
"""How the one torch file of a folder may end."""
_OF_OTHERS = (".npz", ".h5", ".hdf5", ".keras", ".msgpack")
"""Files that are read if they are given themselves."""

_VARIANTS = tuple(
    f".index.{name}.json" for name in ("fp16", "bf16", "fp32", "fp8", "ema", "non_ema")
)
"""How indices of the same weights in another form end (``model.safetensors.index.fp16.json``)."""

WEIGHT_SUFFIXES = (
    *_VARIANTS,
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
    return any_name or not names or _is_usual(names[0])


def lone_weights(path: str) -> str | None:
    """The one file of weights that a folder is a checkpoint by, if it has no usual name."""
    try:
        names, _ = _weights(hub_snapshot(path))
    except InputError:
        return None
    return names[0] if names and os.path.splitext(names[0])[0] not in _STEMS else None


def _is_usual(name: str) -> bool:
    """Whether a library gives this name to the weights of a folder."""
    stem, suffix = os.path.splitext(name)
    return suffix == ".safetensors" or (suffix in _BY_SUFFIX and stem in _STEMS)


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
            add_tensor(builder, shard, number, len(sources))
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


def add_tensor(
    builder: TableBuilder, shard: Checkpoint, number: int, first: int, prefix: str = ""
) -> None:
    """The tensor of a shard whose sources begin at ``first``, its name behind ``prefix``."""
    table = shard.tensors
    if number in table.columns.others:
        tensor = table.at(number)
        spec = replace(tensor.spec, name=prefix + tensor.spec.name)
        boxes = tuple(replace(box, source=first + box.source) for box in tensor.boxes)
        builder.add_boxes(replace(tensor, spec=spec, boxes=boxes))
        return
    offset = table.base + table.columns.offset[number]
    source = first + table.columns.source[number]
    builder.add(prefix + table.columns.names[number], table.form_of(number), offset, source)


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
    for suffix in _BY_SUFFIX:
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
    variants = [name for name in present if name.endswith(_VARIANTS)]
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
        if shard in ("", ".", "..") or "/" in shard or "\\" in shard or "\0" in shard:
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


def shard_names(stem: str, suffix: str, count: int) -> Sequence[str]:
    """File names of ``count`` shards, as Hugging Face numbers them."""
    if count == 1:
        return (f"{stem}{suffix}",)
    return tuple(f"{stem}-{index:05d}-of-{count:05d}{suffix}" for index in range(1, count + 1))


def lay_out(request: WriteRequest) -> Layout:
    """A folder like the template's, or one of shards of at most the size asked for."""
    extras = request.template.extras
    first = next(iter(extras.shards), "model.safetensors")
    stem, suffix = re.sub(r"(-\d+-of-\d+)?\.[^.]+$", "", first), os.path.splitext(first)[1]
    if suffix == ".bin" and stem == "model":
        stem = "pytorch_model"
    if request.max_shard_size is not None and (extras.index or "").endswith(_VARIANTS):
        # Other shards are no variant beside those of the usual names.
        stem = (extras.index or "").partition(".")[0]
    if request.max_shard_size is not None and not _is_usual(f"{stem}{suffix}"):
        # Shards of another name would not be found.
        stem, suffix = "model", ".safetensors"
    row = FILES[_BY_SUFFIX.get(suffix, "torch")]
    assert row.lay_out is not None
    assert row.plan_file is not None
    numbers = request.without_ties if suffix == ".safetensors" else range(len(request.specs))
    if extras.shards and request.max_shard_size is None:
        shards = _as_in(extras.shards, request, numbers)
    else:
        groups = _by_size(request, numbers)
        shards = dict(zip(shard_names(stem, suffix, len(groups)), groups, strict=True))
    files, notes = with_written_dtypes(request)
    if len(shards) == 1 and suffix != ".safetensors":
        # With all else that the template's file holds.
        whole = row.lay_out(request)
        layouts = tuple(replace(file, name=next(iter(shards))) for file in whole.layouts)
        notes += whole.notes
    else:
        layouts = tuple(row.plan_file(request, group, name) for name, group in shards.items())
        notes += stale_notes(request)
        if not request.weights_only and (lost := losses(request)):
            notes += (f"a folder of weights holds tensors only: {lost} left out",)
    if len(shards) > 1 or (extras.shards and f"{stem}{suffix}" not in shards):
        name = f"{stem}{suffix}.index.json"
        if extras.index and request.max_shard_size is None:
            name = extras.index
        files[name] = _index(request, shards)
    if extras.left_out:
        shown = ", ".join(extras.left_out[:6]) + (", ..." if len(extras.left_out) > 6 else "")
        base = os.path.basename(request.template.path.rstrip("/"))
        notes = (f"not copied from {base}: {shown}", *notes)
    side_files = {name: path for name, path in extras.side_files.items() if name not in files}
    return Layout(layouts, files, side_files, notes)


def _index(request: WriteRequest, shards: Mapping[str, Sequence[int]]) -> bytes:
    specs, sizes = request.specs, request.specs.sizes
    written = [number for group in shards.values() for number in group]
    weight_map = {specs.names[number]: name for name, group in shards.items() for number in group}
    metadata = request.template.extras.index_metadata
    metadata = {name: value for name, value in metadata.items() if not is_stale(name)}
    metadata["total_size"] = sum(map(sizes.__getitem__, written))
    if isinstance(parameters := metadata.get("total_parameters"), int):
        # Buffers do not count as such: what is new and what is left out, and nothing else.
        columns = request.template.tensors.columns
        before = [math.prod(columns.forms[form][1]) for form in columns.form]
        after = [math.prod(specs.forms[specs.form[number]][1]) for number in written]
        metadata["total_parameters"] = parameters + sum(after) - sum(before)
    content = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(content, indent=2) + "\n").encode()


def _as_in(
    like: Mapping[str, Sequence[str]], request: WriteRequest, numbers: Sequence[int]
) -> dict[str, Sequence[int]]:
    """The tensors in the shards that have them in ``like``; new ones in the last."""
    homes = {name: shard for shard, names in like.items() for name in names}
    last = list(like)[-1]
    shards: dict[str, list[int]] = {shard: [] for shard in like}
    for number in numbers:
        shards[homes.get(request.specs.names[number], last)].append(number)
    return {name: group for name, group in shards.items() if group}


def _by_size(request: WriteRequest, numbers: Sequence[int]) -> list[Sequence[int]]:
    if request.max_shard_size is None:
        return [list(numbers)]
    groups: list[list[int]] = [[]]
    size, sizes = 0, request.specs.sizes
    for number in numbers:
        if groups[-1] and size + sizes[number] > request.max_shard_size:
            groups.append([])
            size = 0
        groups[-1].append(number)
        size += sizes[number]
    return list(groups)


FORMAT = Format(
    "folder", (), lambda head: False, open_folder, lay_out, recipe_in=recipe_in, folder=True
)
