"""Opening torch files: the tensors of their state dict, and what else they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from swavg.formats.checkpoint import Checkpoint, Extras, Scalar, Shared, TableBuilder
from swavg.formats.torch.archive import Archive, Record, read_archive, read_graph
from swavg.formats.torch.blocks import Read
from swavg.formats.torch.extras import Element, Value, plain_values
from swavg.formats.torch.legacy import legacy_head, legacy_places
from swavg.formats.torch.objects import Storage
from swavg.formats.torch.plain import RECIPE
from swavg.formats.torch.state import find_state
from swavg.formats.torch.unpickler import Graph
from swavg.formats.torch.views import placed
from swavg.storage.sources import LocalFile, Pool


@dataclass(frozen=True, eq=False)
class ArchiveTemplate:
    """The records of a zip, in the order of the file, in the folder ``root``; ``key`` is what was
    asked for."""

    key: str | None
    root: str
    records: Sequence[Record]
    alignment: int


@dataclass(frozen=True, eq=False)
class LegacyTemplate:
    """A file without a directory; ``key`` is what was asked for."""

    key: str | None


def open_archive(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    """Open the torch zip at ``path``; ``key`` is the dotted path of the state dict in it.

    Nothing of the file is run. InputError if it is damaged, unsafe, or not such a file.
    """
    file = LocalFile.find(path)
    with Pool() as pool:
        read = _reads(pool, file)
        archive = read_archive(read, path, file.size)
        graph = read_graph(read, archive)
        template = ArchiveTemplate(key, archive.root, _records(archive), archive.alignment)
        recipe = _recipe(read, archive)
        return _opened(path, "torch", file, graph, archive.locate, read, template, recipe, shared)


def open_legacy(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    """Open the legacy torch file at ``path``, as :func:`open_archive`."""
    file = LocalFile.find(path)
    with Pool() as pool:
        read = _reads(pool, file)
        graph, end = legacy_head(read, path, file.size)
        locate = legacy_places(read, path, file.size, graph, end)
        template = LegacyTemplate(key)
        return _opened(path, "torch-legacy", file, graph, locate, read, template, None, shared)


def _opened(
    path: str,
    format: str,
    file: LocalFile,
    graph: Graph,
    locate: Callable[[Storage], int],
    read: Read,
    template: ArchiveTemplate | LegacyTemplate,
    recipe: str | None,
    shared: Shared | None,
) -> Checkpoint:
    state = find_state(path, graph.top, graph.opcodes, template.key)
    builder = TableBuilder()
    for name, dtype, shape, strides, offset, _ in placed(path, state.views, locate):
        builder.add(name, (dtype, shape, strides), offset)
    extras = Extras(
        scalars=dict(_resolved(plain_values(path, graph.top, locate, state=state.node), read)),
        recipe=recipe,
        root_key=state.root_key,
        others=state.other_entries,
        non_tensors=state.non_tensors,
        template=template,
    )
    return Checkpoint(
        path, format, (file,), builder.build(shared), notes=state.notes, extras=extras
    )


def _records(archive: Archive) -> tuple[Record, ...]:
    return tuple(map(archive.__getitem__, range(len(archive))))


def _reads(pool: Pool, file: LocalFile) -> Read:
    return lambda offset, size: pool.read(file, offset, size)


def _recipe(read: Read, archive: Archive) -> str | None:
    """The text that swavg added; None if there is none."""
    record = archive.record(RECIPE)
    if record is None:
        return None
    return bytes(read(record.offset, record.size)).decode(errors="replace")


def _resolved(
    values: Mapping[str | int, Value], read: Read, prefix: str = ""
) -> Iterator[tuple[str, Scalar]]:
    """The values by their dotted paths, with the numbers that lie in tensors of one element."""
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, Element):
            yield path, _number(read, value)
        elif isinstance(value, Mapping):
            yield from _resolved(value, read, f"{path}.")
        else:
            yield path, value


def _number(read: Read, element: Element) -> float:
    import numpy as np

    data = bytes(read(element.offset, element.dtype.itemsize))
    value = np.frombuffer(data, element.dtype.numpy())[0]
    return float(value) if element.dtype.kind == "float" else int(value)
