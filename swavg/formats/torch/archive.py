"""The records of a torch zip: where each lies, checked before any of it is believed.

torch stores them as they are, in one folder: anything else is refused, and names that lead out of
it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from swavg.errors import InputError, NoWeightsError
from swavg.formats.blocks import Read
from swavg.formats.commands import LOAD_AND_SAVE, STATE_DICT, UNZIP, with_paths
from swavg.formats.records import Record
from swavg.formats.torch.arrays import PickledStorage
from swavg.formats.torch.objects import Storage
from swavg.formats.torch.unpickler import MAX_BYTES, Graph, unpickle
from swavg.formats.zip_directory import Entry, data_offsets, read_directory


@dataclass(frozen=True, eq=False)
class Archive:
    """The records of one torch zip, in the order of the file.

    ``names`` are those in the folder ``root``; ``offsets``, ``sizes`` (bytes) and ``crcs`` belong
    to them one to one. ``alignment`` is that of the records.
    """

    path: str
    root: str
    names: tuple[str, ...]
    offsets: array[int]
    sizes: array[int]
    crcs: array[int]
    alignment: int = 64

    @cached_property
    def index(self) -> Mapping[str, int]:
        """The place of each name."""
        return {name: place for place, name in enumerate(self.names)}

    def record(self, name: str) -> Record | None:
        """The record of that name (without the folder's)."""
        place = self.index.get(name)
        return None if place is None else self[place]

    def __getitem__(self, place: int) -> Record:
        return Record(self.names[place], self.offsets[place], self.sizes[place], self.crcs[place])

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Record]:
        columns = zip(self.names, self.offsets, self.sizes, self.crcs, strict=True)
        return map(Record._make, columns)

    def locate(self, storage: Storage) -> int:
        """The offset in the file of the first element of ``storage``, whose record has just the
        size that the pickle says."""
        if isinstance(storage, PickledStorage):
            return self.offsets[self.index["data.pkl"]] + storage.at
        place = self.index.get("data/" + storage.key)
        if place is None:
            raise InputError(self.path, f"its storage '{storage.key[:40]}' is missing")
        itemsize = storage.itemsize
        if itemsize is None:
            return self.offsets[place]
        if self.sizes[place] != storage.root_numel * itemsize:
            raise InputError(
                self.path,
                f"its storage '{storage.key[:40]}' has {self.sizes[place]:,} bytes, not"
                f" {storage.root_numel:,} elements of {itemsize}",
            )
        return self.offsets[place] + storage.start * itemsize


def read_archive(read: Read, path: str, size: int) -> Archive:
    """The records of the zip of ``size`` bytes at ``path``; InputError unless they tile it exactly
    and are those of a torch checkpoint."""
    entries, end = read_directory(read, path, size)
    _check_plain(path, entries)
    root, slash, _ = entries[0].name.partition("/") if entries else ("", "", "")
    folder = root + "/"
    names = tuple(each.name[len(folder) :] for each in entries if each.name.startswith(folder))
    starts = data_offsets(read, path, entries, end)
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise _torchscript(path)
    if not slash or "data.pkl" not in names:
        raise _no_data(path)
    if len(names) != len(entries):
        raise InputError(path, "its zip has records outside its folder")
    sizes = array("q", [entry.size for entry in entries])
    crcs = array("I", [entry.crc for entry in entries])
    archive = Archive(path, root, names, starts, sizes, crcs)

    def small(name: str, default: bytes) -> bytes:
        record = archive.record(name)
        return default if record is None else bytes(read(record.offset, min(record.size, 64)))

    if small("byteorder", b"little") != b"little":
        raise big_endian(path)
    alignment = small(".storage_alignment", b"64") or b"64"
    if not alignment.isdigit() or not 0 < int(alignment) <= 1 << 30:
        raise InputError(path, "corrupt: its storage alignment is no number")
    return replace(archive, alignment=int(alignment))


def _check_plain(path: str, entries: Sequence[Entry]) -> None:
    """InputError for records that are compressed, and for names that torch never writes."""
    for entry in entries:
        name = entry.name
        if name[0] == "/" or "\\" in name or (".." in name and ".." in name.split("/")):
            raise InputError(path, f"a zip record has the unsafe name {name[:80]!r}")
        if entry.method:
            if any(other.name.endswith("/data.pkl") for other in entries):
                if "/code/" in name:
                    raise _torchscript(path)
                problem = f"its record '{name}' is compressed; torch stores records as they are"
                raise _refused(path, problem, "Load and save it again", LOAD_AND_SAVE)
            raise _no_data(path)


def _refused(path: str, problem: str, advice: str, command: str) -> InputError:
    return InputError(path, problem, hint=f"{advice}:\n{with_paths(command, path)}")


def _torchscript(path: str) -> InputError:
    problem = "a TorchScript archive, which holds a program"
    return _refused(path, problem, "Save its state dict. This loads the program", STATE_DICT)


def big_endian(path: str) -> InputError:
    """The refusal of what another kind of machine wrote."""
    problem = "written on a big-endian machine, which swavg does not read"
    return _refused(path, problem, "torch does; load and save it again", LOAD_AND_SAVE)


def _no_data(path: str) -> InputError:
    problem = "a zip, but no torch checkpoint (it has no data.pkl)"
    return NoWeightsError(path, problem, hint=with_paths(UNZIP, path))


def read_pickle(read: Read, archive: Archive) -> bytes:
    """The bytes of data.pkl."""
    record = archive[archive.index["data.pkl"]]
    if record.size > MAX_BYTES:
        raise InputError(archive.path, f"its pickle is larger than {MAX_BYTES >> 20} MiB")
    return bytes(read(record.offset, record.size))


def read_graph(read: Read, archive: Archive) -> Graph:
    """The unpickled data.pkl, all of whose storages have their records."""
    graph = unpickle(archive.path, read_pickle(read, archive))
    for storage in graph.storages:
        archive.locate(storage)
    return graph
