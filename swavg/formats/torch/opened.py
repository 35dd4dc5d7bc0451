"""Opening torch files: the tensors of their state dict, and what else they hold."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from swavg.errors import InputError
from swavg.formats.blocks import Read
from swavg.formats.checkpoint import Checkpoint, Extras
from swavg.formats.tensors import Shared, TableBuilder, TensorTable
from swavg.formats.torch.archive import Archive, read_archive, read_graph, read_pickle
from swavg.formats.torch.arrays import FileWithTexts, place_texts
from swavg.formats.torch.callables import callables
from swavg.formats.torch.extras import Element, Value, plain_values
from swavg.formats.torch.legacy import read_legacy
from swavg.formats.torch.objects import Refused, Storage, View
from swavg.formats.torch.plain import RECIPE
from swavg.formats.torch.siblings import Beside
from swavg.formats.torch.state import State, find_state
from swavg.formats.torch.unpickler import Graph
from swavg.formats.torch.views import placed
from swavg.storage.paths import reading
from swavg.storage.sources import Source

_END = 4096
"""Bytes of a zip in which its last member is named."""


@dataclass(frozen=True, eq=False)
class TorchTemplate:
    """What a writer needs to keep all else: the records of a zip (None: a legacy file, which has
    none); ``key`` is what was asked for, ``names`` are those of the state dict's tensors, ``texts``
    have the offset of each text in the file by that from which on its bytes are read."""

    key: str | None
    archive: Archive | None
    names: tuple[str, ...] = ()
    texts: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Contents:
    """What a pickle says, placed in a file whose first storage lies at ``base``. ``siblings`` are
    the other state dicts; ``doubtful`` are paths of what may be one; ``texts`` have the
    offsets of those that spell arrays, and those from which on their bytes are read; ``callables``
    are what torch would run by default, ``foreign`` what else it would."""

    base: int
    table: TensorTable
    siblings: Mapping[str, TensorTable]
    doubtful: tuple[str, ...]
    texts: Mapping[int, int]
    state: State
    values: Mapping[str, Value]
    callables: tuple[str, ...]
    foreign: tuple[str, ...]


def open_archive(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    """Open the torch zip at ``path``; ``key`` is the dotted path of the state dict in it.

    Nothing of the file is run. InputError if it is damaged, unsafe, or not such a file.
    """
    shared = Shared() if shared is None else shared
    with reading(path) as (file, read):
        archive = read_archive(read, path, file.size)
        base = min(archive.offsets)
        # Checkpoints of one run have the same pickle, and the same records behind it.
        identity = (
            hashlib.sha256(read_pickle(read, archive)).digest(),
            hash(archive.names),
            array("q", [offset - base for offset in archive.offsets]).tobytes(),
            archive.sizes.tobytes(),
            key,
        )
        contents = shared.once(
            _Contents,
            identity,
            lambda: _contents(path, read_graph(read, archive), archive.locate, key, base, shared),
        )
        recipe = _recipe(read, archive)
        names = shared.once(tuple, archive.names, lambda: archive.names)
        template = TorchTemplate(key, replace(archive, names=names))
        return _opened(path, "torch", file, contents, base, read, template, recipe)


def open_legacy(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    """Open the legacy torch file at ``path``, as :func:`open_archive`."""
    shared = Shared() if shared is None else shared
    with reading(path) as (file, read):
        # Where its pickles end is known only when they are read.
        contents = shared.once(
            _Contents,
            (file.identity, key),
            lambda: _contents(path, *read_legacy(read, path, file.size), key, 0, shared),
        )
        template = TorchTemplate(key, None)
        return _opened(path, "torch-legacy", file, contents, 0, read, template, None)


def recipe_in(path: str) -> str | None:
    """What swavg wrote of an average into a torch zip. InputError if it is damaged."""
    with reading(path) as (file, read):
        # It is the last member, whose name stands at the end of the zip.
        end = min(file.size, _END)
        if RECIPE.encode() not in read(file.size - end, end):
            return None
        return _recipe(read, read_archive(read, path, file.size))


def _contents(
    path: str,
    graph: Graph,
    in_file: Callable[[Storage], int],
    key: str | None,
    base: int,
    shared: Shared | None,
) -> _Contents:
    state = find_state(path, graph.top, graph.opcodes, key)
    dicts = (state.views, *state.beside.siblings.values())
    storages = {v.storage for views in dicts for v in views.values() if isinstance(v, View)}
    texts = place_texts(storages, in_file)

    def locate(storage: Storage) -> int:
        place = in_file(storage)
        return texts.get(place, place) if texts else place

    table = _table(path, "", state.views, locate, shared)
    siblings: dict[str, TensorTable] = {}
    doubtful = [*state.beside.doubtful]
    for place, sibling in state.beside.siblings.items():
        try:
            siblings[place] = _table(path, place + ".", sibling, locate, shared)
        except InputError:
            # One that is not read does no harm.
            doubtful.append(place)
    values = plain_values(path, graph.top, locate, state=state.node)
    # The objects of the pickle have served.
    state = replace(state, node=None, views={}, beside=Beside())
    return _Contents(
        base, table, siblings, tuple(doubtful), texts, state, values, *callables(graph.globals)
    )


def _table(
    path: str,
    prefix: str,
    views: Mapping[str, View | Refused],
    locate: Callable[[Storage], int],
    shared: Shared | None,
) -> TensorTable:
    builder = TableBuilder()
    for name, dtype, shape, strides, offset, _ in placed(path, views, locate):
        builder.add(prefix + name, (dtype, shape, strides), offset)
    return builder.build(shared)


def _opened(
    path: str,
    format: str,
    file: Source,
    contents: _Contents,
    base: int,
    read: Read,
    template: TorchTemplate,
    recipe: str | None,
) -> Checkpoint:
    shift, state = base - contents.base, contents.state
    texts = {text + shift: start + shift for text, start in contents.texts.items()}
    extras = Extras(
        scalars={
            name: _number(read, value, shift) if isinstance(value, Element) else value
            for name, value in contents.values.items()
        },
        recipe=recipe,
        root_key=state.root_key,
        others=state.other_entries,
        non_tensors=state.non_tensors,
        records={} if template.archive is None else {0: template.archive},
        siblings={
            place: TensorTable(of.columns, of.base + shift)
            for place, of in contents.siblings.items()
        },
        doubtful=contents.doubtful,
        also=state.also,
        arrays=state.arrays,
        callables=contents.callables,
        foreign=contents.foreign,
        template=replace(
            template,
            names=contents.table.columns.names,
            texts={start: text for text, start in texts.items()},
        ),
    )
    table = TensorTable(contents.table.columns, contents.table.base + shift)
    source: Source = file
    if texts:
        source = FileWithTexts(file, tuple(texts.values()), tuple(texts))
    return Checkpoint(path, format, (source,), table, notes=state.notes, extras=extras)


def _recipe(read: Read, archive: Archive) -> str | None:
    """The text that swavg added; None if there is none."""
    record = archive.record(RECIPE)
    if record is None:
        return None
    return bytes(read(record.offset, record.size)).decode(errors="replace")


def _number(read: Read, element: Element, shift: int) -> int | float:
    dtype = element.dtype
    return dtype.number(read(element.offset + shift, dtype.itemsize))
