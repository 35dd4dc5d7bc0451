"""What a checkpoint holds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, cast

from swavg.errors import RequestError
from swavg.formats import open_checkpoint
from swavg.formats.base import Checkpoint, Tensor
from swavg.formats.files import open_input, read_exactly
from swavg.formats.folder import FolderCheckpoint
from swavg.looking.figures import Statistics, jsonable
from swavg.matching import canonical

if TYPE_CHECKING:
    from swavg.formats.torch_zip import TorchZipCheckpoint
    from swavg.looking.chunks import OnProgress

_MAX_RECIPE = 16 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor as it is shown. ``nbytes`` are those of its packed elements; ``tied_to`` the first
    name of the same tensor; ``file`` the shard in which it lies, in a folder."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    nbytes: int
    tied_to: str | None = None
    file: str | None = None
    statistics: Statistics | None = None


@dataclass(frozen=True, slots=True)
class Total:
    """Sums over tensors; tied ones count once."""

    tensors: int
    elements: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Pickled:
    """What a PyTorch file holds: ``root_key`` is the dotted path of its state dict (empty: the top
    level), ``other_entries`` what lies beside it, ``non_tensors`` what is in it and no tensor,
    ``scalars`` the plain values at the top level."""

    root_key: str
    other_entries: tuple[str, ...]
    non_tensors: tuple[str, ...]
    scalars: Mapping[str, int | float | str]


@dataclass(frozen=True, slots=True)
class Shard:
    """A weight file of a folder: ``size`` in bytes."""

    name: str
    size: int
    tensors: int


@dataclass(frozen=True, slots=True)
class Folder:
    """``side_files`` would be copied beside an average; ``left_out`` would not."""

    shards: tuple[Shard, ...]
    index: str | None
    index_metadata: Mapping[str, object]
    side_files: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a checkpoint holds.

    ``size`` is that of its files in bytes; ``held`` the number of its tensors, of which ``tensors``
    are those asked for. ``by_dtype`` and ``by_module`` (the first part of the canonical name, empty
    for names without a dot) sum those, largest first. ``recipe`` is swavg's record of an average.
    """

    path: str
    format: str
    size: int
    held: int
    tensors: tuple[Entry, ...]
    total: Total
    by_dtype: Mapping[str, Total]
    by_module: Mapping[str, Total]
    ties: tuple[tuple[str, ...], ...]
    metadata: Mapping[str, str]
    recipe: Mapping[str, Any] | None
    pickled: Pickled | None
    folder: Folder | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``; floats that JSON lacks become None."""
        return cast(dict[str, Any], jsonable(asdict(self)))


def inspect(
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    stats: bool = False,
    include: Sequence[str] = (),
    on_progress: OnProgress | None = None,
) -> Inspection:
    """What the checkpoint at ``path`` holds; only headers are read, unless ``stats`` is set.

    ``include`` are globs of the tensors to look at (all by default). Raises InputError, or
    RequestError for globs that match nothing.
    """
    checkpoint = open_checkpoint(path, key=key)
    chosen = _chosen(checkpoint, include)
    ties = tuple(
        group
        for names in checkpoint.ties
        if len(group := tuple(name for name in names if name in chosen)) > 1
    )
    tied_to = {name: group[0] for group in ties for name in group[1:]}
    own = {name: tensor for name, tensor in chosen.items() if name not in tied_to}
    statistics: Mapping[str, Statistics] = {}
    if stats:
        from swavg.looking.moments import statistics_of

        statistics = statistics_of(checkpoint, own, on_progress)
    homes = _homes(checkpoint)
    entries = tuple(
        Entry(
            name,
            tensor.spec.dtype.name,
            tensor.spec.shape,
            tensor.spec.numel,
            tensor.spec.nbytes,
            tied_to.get(name),
            homes.get(name),
            statistics.get(tied_to.get(name, name)),
        )
        for name, tensor in chosen.items()
    )
    metadata, recipe, pickled = _around(checkpoint, key)
    return Inspection(
        checkpoint.path,
        checkpoint.format,
        checkpoint.size,
        len(checkpoint),
        entries,
        total(entries),
        _grouped(entries, lambda entry: entry.dtype),
        _grouped(entries, lambda entry: top_module(entry.name)),
        ties,
        metadata,
        recipe,
        pickled,
        _folder(checkpoint),
        checkpoint.notes,
    )


def total(entries: Iterable[Entry]) -> Total:
    """The sum of ``entries``."""
    own = [entry for entry in entries if entry.tied_to is None]
    elements = sum(entry.elements for entry in own)
    return Total(len(own), elements, sum(entry.nbytes for entry in own))


def top_module(name: str) -> str:
    """``encoder`` of ``module.encoder.0.weight``; empty for a name without a dot."""
    first, dot, _ = canonical(name).partition(".")
    return first if dot else ""


def _grouped(entries: Sequence[Entry], by: Callable[[Entry], str]) -> dict[str, Total]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(by(entry), []).append(entry)
    totals = {name: total(group) for name, group in groups.items()}
    return dict(sorted(totals.items(), key=lambda item: -item[1].nbytes))


def _chosen(checkpoint: Checkpoint, include: Sequence[str]) -> dict[str, Tensor]:
    chosen = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if not include
        or any(fnmatchcase(text, glob) for text in (name, canonical(name)) for glob in include)
    }
    if include and not chosen:
        globs = ", ".join(f"'{glob}'" for glob in include)
        raise RequestError(f"--include {globs} matches none of {len(checkpoint)} tensors.")
    return chosen


def _homes(checkpoint: Checkpoint) -> dict[str, str]:
    if not isinstance(checkpoint, FolderCheckpoint):
        return {}
    return {name: shard for shard, names in checkpoint.shards.items() for name in names}


def _folder(checkpoint: Checkpoint) -> Folder | None:
    if not isinstance(checkpoint, FolderCheckpoint):
        return None
    shards = tuple(
        Shard(name, file.size, len(names))
        for (name, names), file in zip(checkpoint.shards.items(), checkpoint.files, strict=True)
    )
    return Folder(
        shards,
        checkpoint.index_name,
        dict(checkpoint.index_metadata),
        checkpoint.side_files,
        checkpoint.left_out,
    )


def _around(
    checkpoint: Checkpoint, key: str | None
) -> tuple[dict[str, str], Mapping[str, Any] | None, Pickled | None]:
    """Metadata, the recipe, and what a PyTorch file (the first of a folder) holds."""
    metadata = dict(checkpoint.metadata)
    if isinstance(checkpoint, FolderCheckpoint) and checkpoint.suffix == ".bin":
        checkpoint = open_checkpoint(checkpoint.files[0].path, key=key)
    pickled = None
    recipe = _recipe(metadata.get("swavg"))
    if recipe is not None:
        del metadata["swavg"]
    if checkpoint.format.startswith("torch"):
        # The fields of the legacy format are the same.
        file = cast("TorchZipCheckpoint", checkpoint)
        pickled = Pickled(file.root_key, file.other_entries, file.non_tensors, dict(file.scalars))
    if checkpoint.format == "torch":
        recipe = _recipe(_record(cast("TorchZipCheckpoint", checkpoint)))
    return metadata, recipe, pickled


def _record(checkpoint: TorchZipCheckpoint) -> bytes | None:
    from swavg.formats.torch_plain import RECIPE

    for record in checkpoint.records:
        if record.name == f"{checkpoint.root}/{RECIPE}" and record.size <= _MAX_RECIPE:
            with open_input(checkpoint.path) as (fd, file):
                return bytes(read_exactly(fd, file, record.offset, record.size))
    return None


def _recipe(text: str | bytes | None) -> Mapping[str, Any] | None:
    """The recipe in ``text``; None if there is none that can be read."""
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
