"""What a folder of weights is written as: like the template's, or in shards as Hugging Face numbers
them; with an index, and the files that lie beside the weights."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from swavg.errors import some
from swavg.formats.configuration import with_written_dtypes
from swavg.formats.files import FILES
from swavg.formats.folder import BY_SUFFIX, VARIANTS, is_usual
from swavg.formats.hashes import is_stale, stale_notes
from swavg.formats.layout import Layout, WriteRequest, losses


def lay_out(request: WriteRequest) -> Layout:
    """A folder like the template's, or one of shards of at most the size asked for."""
    extras = request.template.extras
    first = next(iter(extras.shards), "model.safetensors")
    stem, suffix = re.sub(r"(-\d+-of-\d+)?\.[^.]+$", "", first), os.path.splitext(first)[1]
    if suffix == ".bin" and stem == "model":
        stem = "pytorch_model"
    if request.max_shard_size is not None and (extras.index or "").endswith(VARIANTS):
        # Other shards are no variant beside those of the usual names.
        stem = (extras.index or "").partition(".")[0]
    if request.max_shard_size is not None and not is_usual(f"{stem}{suffix}"):
        # Shards of another name would not be found.
        stem, suffix = "model", ".safetensors"
    row = FILES[BY_SUFFIX.get(suffix, "torch")]
    assert row.lay_out is not None
    assert row.plan_file is not None
    numbers = request.without_ties if suffix == ".safetensors" else range(len(request.specs))
    if extras.shards and request.max_shard_size is None:
        shards = _as_in(extras.shards, request, numbers)
    else:
        groups = _by_size(request, numbers)
        shards = dict(zip(_shard_names(stem, suffix, len(groups)), groups, strict=True))
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
        base = os.path.basename(request.template.path.rstrip("/"))
        notes = (f"not copied from {base}: {some(extras.left_out, 6)}", *notes)
    side_files = {name: path for name, path in extras.side_files.items() if name not in files}
    return Layout(layouts, files, side_files, notes)


def _shard_names(stem: str, suffix: str, count: int) -> Sequence[str]:
    """File names of ``count`` shards, as Hugging Face numbers them."""
    if count == 1:
        return (f"{stem}{suffix}",)
    return tuple(f"{stem}-{index:05d}-of-{count:05d}{suffix}" for index in range(1, count + 1))


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
