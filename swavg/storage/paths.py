"""Looking at paths: those of this machine by the system, URLs by their store. Nobody else asks
which of the two a path is.

What a store listed is remembered for a few seconds, so that looking at all names of a folder is one
request; and each object is pinned to the version that was found, so that what has changed since is
an error.
"""

from __future__ import annotations

import io
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from swavg.errors import InputError, some
from swavg.storage.pool import Pool, Window
from swavg.storage.sources import LocalFile, Source
from swavg.storage.stores import SCHEMES, is_url, looks_like_url

_AHEAD = 60
"""Objects whose beginning and end are kept until they are opened."""


_SECOND = 1_000_000_000


class Status(NamedTuple):
    """What tells one file or folder from others, and its size in bytes."""

    identity: tuple[object, ...]
    size: int


def in_store(source: Source) -> bool:
    """Whether a read of it is a request to a store."""
    return is_url(source.name)


def is_absolute(path: str) -> bool:
    """Whether it leads to the same place from every folder."""
    return is_url(path) or os.path.isabs(path)


def exists(path: str) -> bool:
    """Whether there is a file or a folder."""
    return is_file(path) or is_folder(path) if is_url(path) else os.path.exists(path)


def is_file(path: str) -> bool:
    """Whether there is a file, as far as one may look."""
    if is_url(path):
        from swavg.storage import listed

        return listed.find(path) is not None
    return os.path.isfile(path)


def is_folder(path: str) -> bool:
    """Whether there is a folder, as far as one may look."""
    if is_url(path):
        from swavg.storage import listed

        return listed.is_folder(path)
    return os.path.isdir(path)


def is_link(path: str) -> bool:
    """Whether it is another name for what lies elsewhere."""
    return not is_url(path) and os.path.islink(path)


def names_in(path: str) -> list[str]:
    """The names in the folder at ``path``, sorted. InputError."""
    if is_url(path):
        from swavg.storage import listed

        return listed.names_in(path)
    try:
        return sorted(os.listdir(path))
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from None


def names_if_any(path: str) -> list[str]:
    """:func:`names_in`; none where there is no folder, or none that one may look into."""
    try:
        return names_in(path) if not is_url(path) or is_folder(path) else []
    except (InputError, ValueError):
        if is_url(path):
            raise
        return []


def files_below(path: str) -> Iterator[str]:
    """The paths of the files in a folder, at any depth; none in hidden folders."""
    if is_url(path):
        for name in names_in(path):
            full = os.path.join(path, name)
            if is_file(full):
                yield full
            elif not name.startswith("."):
                yield from files_below(full)
        return
    for root, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            yield os.path.join(root, name)


def find_file(path: str) -> Source:
    """The file at ``path``, as it is now. InputError unless it is one that can be looked at."""
    if is_url(path):
        from swavg.storage import listed

        if (stored := listed.find(path)) is not None:
            return stored
        raise listed.absent(path)
    try:
        return LocalFile.find(path)
    except InputError as error:
        if error.absent and looks_like_url(path):
            kinds = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            hint = f"A URL begins with one of {kinds}; pathlib makes one slash of two."
            raise InputError(path, error.problem, hint=hint) from None
        raise


def find_part(path: str, whole: str) -> Source:
    """:func:`find_file` for one of several files that the checkpoint at ``whole`` consists of."""
    try:
        return find_file(path)
    except InputError as error:
        if not error.absent:
            raise
        raise InputError(
            whole,
            f"is incomplete: {os.path.basename(path)} is missing",
            hint="Copy it once more, or give the others without it.",
        ) from None


def check_all(sources: Iterable[Source]) -> None:
    """InputError if one is no longer what it was; objects are looked at side by side."""
    pending = []
    for source in sources:
        if in_store(source):
            from swavg.storage.calls import begin

            pending.append(begin(source.check))
        else:
            source.check()
    for check in pending:
        check.result()


def version_of(source: Source) -> str | None:
    """The store's digest of an object: where two are equal, the bytes are. None for other sources,
    and where the store has none."""
    if in_store(source):
        from swavg.storage.stored import Stored

        return source.etag if isinstance(source, Stored) else None
    return None


def check_local(path: str, problem: str) -> None:
    """InputError for what is in a store, with the command that copies it."""
    if not is_url(path):
        return
    place = shlex.quote(path.rstrip("/"))
    name = shlex.quote(os.path.basename(path.rstrip("/")))
    commands = {
        "s3": f"aws s3 cp --recursive {place} {name}",
        "gs": f"gcloud storage cp --recursive {place} .",
        "hf": f"hf download {path.removeprefix('hf://').partition('@')[0]}",
    }
    command = commands.get(path.partition("://")[0])
    raise InputError(path, problem, hint="Copy it first" + (f":\n{command}" if command else "."))


def unpinned(sources: Iterable[Source]) -> list[str]:
    """A warning of objects whose server gives them no version."""
    objects = [*filter(in_store, sources)]
    if not objects:
        return []
    from swavg.storage.stored import Stored

    loose = [s.name for s in objects if isinstance(s, Stored) and not s.pinned]
    return loose and [
        f"the server gives {some(loose, 2)} no version (ETag): that it stays the same while it is"
        " read is told by its time of change alone"
    ]


def list_ahead(folder: str, names: Iterable[str]) -> None:
    """List the folders among these names of a folder, side by side; nothing of a local one."""
    if is_url(folder):
        _side_by_side([path for name in names if is_folder(path := os.path.join(folder, name))])


def look_ahead(paths: Sequence[str]) -> None:
    """Fetch what opening these checkpoints reads first, side by side: of as many as are kept, and
    nothing of local ones."""
    urls = [path for path in paths if is_url(path)][:_AHEAD]
    if len(urls) > 1:
        _side_by_side(urls)


def _side_by_side(urls: Sequence[str]) -> None:
    from swavg.storage import listed
    from swavg.storage.calls import begin

    for looking in [begin(listed.look_ahead, url) for url in urls]:
        looking.result()


def expect(pool: Pool, ranges: Iterable[tuple[Source, int, int]]) -> None:
    """Fetch the bytes ``[start, stop)`` of objects side by side, for what the pool reads next."""
    from swavg.storage.fetching import Fetching

    before = pool.expected
    pool.expected = Fetching(ranges, before if isinstance(before, Fetching) else None)


def status(path: str) -> Status | None:
    """What is known of a file or a folder; None if there is none."""
    if is_url(path):
        from swavg.storage import listed

        stored = listed.find(path)
        if stored is not None:
            return Status(stored.identity, stored.size)
        return Status((path.rstrip("/"),), 0) if is_folder(path) else None
    try:
        found = os.stat(path)
    except OSError:
        return None
    return Status((found.st_dev, found.st_ino), found.st_size)


def changed(path: str) -> int | None:
    """When a file was changed, or the oldest of those in a folder, in nanoseconds; of objects to
    the second. None if that is not known. InputError."""
    times = []
    for each in files_below(path) if is_folder(path) else [path]:
        source = find_file(each)
        if isinstance(source, LocalFile):
            times.append(source.version)
        else:
            from swavg.storage.stored import Stored

            if not isinstance(source, Stored) or source.modified is None:
                return None
            times.append(int(source.modified.timestamp()) * _SECOND)
    return min(times, default=None)


def absolute(path: str) -> str:
    """The absolute path; the path itself where the current folder is gone."""
    if is_url(path):
        return path.rstrip("/")
    try:
        return os.path.abspath(path)
    except OSError:
        return path


def normal(path: str) -> str:
    """The path without what does not change where it leads."""
    return path.rstrip("/") if is_url(path) else os.path.normpath(path)


@dataclass(frozen=True, slots=True)
class FileReader:
    """Reads of a file so many bytes from an offset on. InputError."""

    pool: Pool
    file: Source

    def __call__(self, offset: int, size: int) -> bytearray:
        return self.pool.read(self.file, offset, size)

    @property
    def remote(self) -> bool:
        """Whether a read is a request to a store."""
        return in_store(self.file)

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Fetch the bytes ``[start, stop)`` of an object side by side, before they are read."""
        expect(self.pool, ((self.file, start, stop) for start, stop in ranges))


@contextmanager
def reading(path: str) -> Iterator[tuple[Source, FileReader]]:
    """The file at ``path``, and what reads of it. InputError."""
    file = find_file(path)
    with Pool() as pool:
        yield file, FileReader(pool, file)


def read_file(path: str, most: int | None = None) -> bytes:
    """The bytes of the file at ``path``, at most the first ``most``. InputError."""
    with reading(path) as (file, read):
        return bytes(read(0, file.size if most is None else min(file.size, most)))


@contextmanager
def open_binary(path: str) -> Iterator[io.BufferedReader]:
    """The file at ``path``, to be read line by line. InputError, also from reads."""
    file = find_file(path)
    reader = file.open()
    try:
        yield io.BufferedReader(Window(reader, 0, file.size))
    finally:
        reader.close()
