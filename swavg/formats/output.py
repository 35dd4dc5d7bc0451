"""What is written: which kind of output, which files, and where every byte goes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from swavg.errors import RequestError
from swavg.formats.base import Checkpoint, Layout, Task
from swavg.formats.folder import FolderCheckpoint, shard_names
from swavg.formats.safetensors import lay_out_safetensors
from swavg.publish import is_stream

Kind = Literal["safetensors", "torch", "folder"]

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")


@dataclass(frozen=True, slots=True)
class Target:
    """Where the output goes (``path`` is None for standard output) and of which kind it is."""

    path: str | None
    kind: Kind


@dataclass(frozen=True, slots=True)
class Output:
    """The files of an output. ``files`` are small ones made here (an index), ``side_files`` the
    paths to copy beside the weights, by name; ``notes`` say what could not be kept."""

    target: Target
    layouts: tuple[Layout, ...]
    files: Mapping[str, bytes]
    side_files: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all files, side files excepted."""
        return sum(layout.size for layout in self.layouts) + sum(map(len, self.files.values()))


def default_path(first: Checkpoint, max_shard_size: int | None = None) -> str:
    """``averaged`` with the suffix of the first input; a folder ``averaged`` for folders, and if
    shards are asked for."""
    if first.format == "folder" or max_shard_size is not None:
        return "averaged"
    name = os.path.basename(first.path)
    suffix = ".pth.tar" if name.endswith(".pth.tar") else os.path.splitext(name)[1]
    return f"averaged{suffix}"


def choose_target(path: str | None, first: Checkpoint, max_shard_size: int | None) -> Target:
    """The kind of output that ``path`` asks for; by its suffix, else that of the first input."""
    if path is None:
        if max_shard_size is not None:
            raise RequestError("Standard output takes one file: leave --max-shard-size out.")
        return Target(None, "safetensors")
    bare = path.rstrip("/") or path
    suffix = os.path.splitext(bare)[1].lower()
    if os.path.isdir(bare) and first.format != "folder" and max_shard_size is None:
        # As cp does: a file goes into an existing folder.
        return choose_target(os.path.join(bare, default_path(first)), first, None)
    if is_stream(bare):
        # A FIFO or a device takes one file.
        torch_like = first.format.startswith("torch") and suffix != ".safetensors"
        return Target(bare, "torch" if torch_like or suffix in TORCH_SUFFIXES else "safetensors")
    if path.endswith("/") or os.path.isdir(bare) or max_shard_size is not None:
        if suffix in (".safetensors", *TORCH_SUFFIXES) and not os.path.isdir(bare):
            raise RequestError(
                f"A folder of shards cannot be named '{bare}'.",
                hint="Give a name without a suffix, or leave --max-shard-size out.",
            )
        return Target(bare, "folder")
    if suffix == ".safetensors":
        return Target(bare, "safetensors")
    if suffix in TORCH_SUFFIXES:
        return Target(bare, "torch")
    by_format: dict[str, Kind] = {"folder": "folder", "safetensors": "safetensors"}
    return Target(bare, by_format.get(first.format, "torch"))


def lay_out(
    target: Target,
    tasks: Sequence[Task],
    ties: Sequence[tuple[str, ...]],
    template: Checkpoint,
    template_input: int,
    recipe: str,
    *,
    drop_ties: bool = False,
    weights_only: bool = False,
    max_shard_size: int | None = None,
) -> Output:
    """Plan all files of the output. ``recipe`` is the text that records what was averaged."""
    metadata = _metadata(template, recipe)
    if target.kind == "folder":
        return _folder(target, tasks, ties, template, metadata, drop_ties, max_shard_size)
    notes: list[str] = []
    if target.kind == "safetensors":
        written = _without_ties(tasks, ties) if drop_ties else tasks
        if lost := _other_content(template):
            notes.append(f"safetensors holds tensors only: {lost} of {_name(template)} left out")
        return Output(target, (lay_out_safetensors(written, metadata),), {}, {}, tuple(notes))
    layout: Layout | str = "--weights-only"
    if not weights_only:
        layout = _like_template(template, template_input, tasks, recipe)
    if isinstance(layout, str):
        lost = _other_content(template)
        if lost and not weights_only:
            notes.append(
                f"{lost} of {_name(template)} left out: the output is a bare state dict ({layout})"
            )
        from swavg.formats.torch_zip import lay_out_plain

        layout = lay_out_plain(tasks, ties, "", recipe.encode())
    return Output(target, (layout,), {}, {}, tuple(notes))


def _name(checkpoint: Checkpoint) -> str:
    return os.path.basename(checkpoint.path.rstrip("/"))


# Entries that swavg.training writes of one snapshot: they do not hold for what is made of it.
_OF_ONE = ("metrics", "snapshots", "ema_state")


def _metadata(template: Checkpoint, recipe: str) -> dict[str, str]:
    metadata = {name: text for name, text in template.metadata.items() if name not in _OF_ONE}
    # transformers refuses files that do not say which framework wrote them.
    metadata.setdefault("format", "pt")
    metadata["swavg"] = recipe
    return metadata


def _other_content(template: Checkpoint) -> str:
    # At the top level, what is no tensor stands in both.
    others = list(
        dict.fromkeys(
            (*getattr(template, "other_entries", ()), *getattr(template, "non_tensors", ()))
        )
    )
    if not others:
        return ""
    shown = ", ".join(f"'{name}'" for name in others[:5])
    return shown + (f" and {len(others) - 5} more" if len(others) > 5 else "")


def _like_template(
    template: Checkpoint, template_input: int, tasks: Sequence[Task], recipe: str
) -> Layout | str:
    from swavg.formats import torch_legacy, torch_zip

    if isinstance(template, torch_zip.TorchZipCheckpoint):
        return torch_zip.lay_out_like(template, template_input, tasks, "", recipe.encode())
    if isinstance(template, torch_legacy.TorchLegacyCheckpoint):
        return torch_legacy.lay_out_like(template, template_input, tasks, "", recipe.encode())
    return "the last input is no PyTorch file"


def _without_ties(tasks: Sequence[Task], ties: Sequence[tuple[str, ...]]) -> list[Task]:
    aliases = {name for group in ties for name in group[1:]}
    return [task for task in tasks if task.name not in aliases]


def _folder(
    target: Target,
    tasks: Sequence[Task],
    ties: Sequence[tuple[str, ...]],
    template: Checkpoint,
    metadata: Mapping[str, str],
    drop_ties: bool,
    max_shard_size: int | None,
) -> Output:
    like = template if isinstance(template, FolderCheckpoint) else None
    stem = "model" if like is None else like.stem
    suffix = ".safetensors" if like is None else like.suffix
    if suffix == ".bin" and stem == "model":
        stem = "pytorch_model"
    if drop_ties and suffix == ".safetensors":
        tasks = _without_ties(tasks, ties)
    shards: dict[str, list[Task]]
    if like is not None and max_shard_size is None:
        shards = _as_in(like, tasks)
    else:
        groups = _by_size(tasks, max_shard_size)
        names = shard_names(stem, suffix, len(groups))
        shards = dict(zip(names, groups, strict=True))
    layouts: list[Layout] = []
    for name, group in shards.items():
        if suffix == ".bin":
            from swavg.formats.torch_zip import lay_out_plain

            present = {task.name for task in group}
            inside = [tuple(name for name in tie if name in present) for tie in ties]
            layouts.append(
                lay_out_plain(
                    group, [tie for tie in inside if len(tie) > 1], name, metadata["swavg"].encode()
                )
            )
        else:
            layouts.append(lay_out_safetensors(group, metadata, name))
    files: dict[str, bytes] = {}
    if len(shards) > 1 or (like is not None and f"{stem}{suffix}" not in shards):
        total = sum(task.nbytes for group in shards.values() for task in group)
        index_metadata = dict(like.index_metadata) if like is not None else {}
        weight_map = {task.name: name for name, group in shards.items() for task in group}
        content = {
            "metadata": {**index_metadata, "total_size": total},
            "weight_map": dict(sorted(weight_map.items())),
        }
        index_name = f"{stem}{suffix}.index.json"
        if like is not None and like.index_name and max_shard_size is None:
            index_name = like.index_name
        files[index_name] = (json.dumps(content, indent=2) + "\n").encode()
    side = {} if like is None else {name: os.path.join(like.path, name) for name in like.side_files}
    notes = []
    if like is not None and like.left_out:
        shown = ", ".join(like.left_out[:6]) + (", ..." if len(like.left_out) > 6 else "")
        notes.append(f"not copied from {_name(like)}: {shown}")
    return Output(target, tuple(layouts), files, side, tuple(notes))


def _as_in(like: FolderCheckpoint, tasks: Sequence[Task]) -> dict[str, list[Task]]:
    homes = {name: shard for shard, names in like.shards.items() for name in names}
    last = list(like.shards)[-1]
    shards: dict[str, list[Task]] = {shard: [] for shard in like.shards}
    for task in tasks:
        shards[homes.get(task.name, last)].append(task)
    return {name: group for name, group in shards.items() if group}


def _by_size(tasks: Sequence[Task], limit: int | None) -> list[list[Task]]:
    if limit is None:
        return [list(tasks)]
    groups: list[list[Task]] = [[]]
    size = 0
    for task in tasks:
        if groups[-1] and size + task.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(task)
        size += task.nbytes
    return groups
