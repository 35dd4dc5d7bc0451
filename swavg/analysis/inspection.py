"""What a checkpoint holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from swavg.analysis.figures import Statistics, jsonable
from swavg.engine.recipe import recorded_in
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.parts import open_whole
from swavg.formats.tensors import Tensor
from swavg.planning.globs import check_globs
from swavg.planning.match import canonical, spelling
from swavg.short_repr import ShortRepr
from swavg.storage.sources import Source

if TYPE_CHECKING:
    from swavg.analysis.chunks import OnProgress


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
    """What a PyTorch file holds: ``key`` is the dotted path of its state dict (empty: the top
    level), ``other_entries`` what lies beside it, ``non_tensors`` what is in it and no tensor,
    ``scalars`` the plain values at the top level, of tensors with one element too. ``callables``
    are the functions and classes that torch would run to load it, ``foreign`` those of others that
    it would run with weights_only=False only; of a folder those of all files. Nothing is run here.
    """

    key: str
    other_entries: tuple[str, ...]
    non_tensors: tuple[str, ...]
    scalars: Mapping[str, int | float | str]
    callables: tuple[str, ...]
    foreign: tuple[str, ...]


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


@dataclass(frozen=True, slots=True, repr=False)
class Inspection(ShortRepr):
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
    recipe: Mapping[str, object] | None
    pickled: Pickled | None
    folder: Folder | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Plain values for ``json.dumps``; floats that JSON lacks become None."""
        return {name: jsonable(value) for name, value in asdict(self).items()}


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
    checkpoint = open_whole(path, key=key)
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
        from swavg.analysis.moments import statistics_of

        statistics = statistics_of(checkpoint, own, on_progress)
    homes = {name: file for file, names in checkpoint.extras.shards.items() for name in names}
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
    metadata, recipe = dict(checkpoint.metadata), recorded_in(checkpoint) or None
    if recipe is not None:
        metadata.pop("swavg", None)
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
        _pickled(checkpoint, key),
        _folder(checkpoint),
        checkpoint.notes,
    )


def total(entries: Iterable[Entry]) -> Total:
    """The sum of ``entries``."""
    own = [entry for entry in entries if entry.tied_to is None]
    elements = sum(entry.elements for entry in own)
    return Total(len(own), elements, sum(entry.nbytes for entry in own))


def top_module(name: str) -> str:
    """``encoder`` of ``module.encoder.0.weight`` and of ``encoder/0/weight``; empty for a name of
    one part."""
    name = canonical(name)
    first, mark, _ = name.partition("/" if "/" in name else ".")
    return first if mark else ""


def _grouped(entries: Sequence[Entry], by: Callable[[Entry], str]) -> dict[str, Total]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(by(entry), []).append(entry)
    totals = {name: total(group) for name, group in groups.items()}
    return dict(sorted(totals.items(), key=lambda item: -item[1].nbytes))


def _chosen(checkpoint: Checkpoint, include: Sequence[str]) -> dict[str, Tensor]:
    names = list(checkpoint.tensors)
    check_globs([names], include)
    spell = spelling(names)
    return {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if not include
        or any(fnmatchcase(text, glob) for text in (name, spell(name)) for glob in include)
    }


def _folder(checkpoint: Checkpoint) -> Folder | None:
    extras = checkpoint.extras
    if not extras.shards:
        return None
    shards = tuple(
        Shard(name, source.size, len(names))
        for (name, names), source in zip(extras.shards.items(), checkpoint.sources, strict=True)
    )
    return Folder(
        shards, extras.index, dict(extras.index_metadata), tuple(extras.side_files), extras.left_out
    )


def _pickled(checkpoint: Checkpoint, key: str | None) -> Pickled | None:
    """What a PyTorch file holds; of a folder the first."""
    others: Sequence[Source] = ()
    if checkpoint.extras.shards:
        first, *others = checkpoint.sources
        checkpoint = open_whole(first.name, key=key)
    extras = checkpoint.extras
    if extras.root_key is None:
        return None
    scalars = {
        name: value
        for name, value in extras.scalars.items()
        if "." not in name
        # At the top level, tensors of one element are among the weights.
        and (extras.root_key or name not in checkpoint)
    }
    files = [extras, *(open_whole(each.name, key=key).extras for each in others)]
    usual = sorted({name for each in files for name in each.callables})
    foreign = sorted({name for each in files for name in each.foreign})
    return Pickled(
        extras.root_key, extras.others, extras.non_tensors, scalars, tuple(usual), tuple(foreign)
    )
