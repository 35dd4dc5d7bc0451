"""Objects in a store as sources: pinned to the version that was found, a range at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from swavg.errors import ChangedError, DeniedError, InputError, SwavgError
from swavg.storage.calls import Abandoned, call
from swavg.storage.stores import Location, is_denied, store_of, told

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta


_BLOCK = 1 << 14
"""Bytes that are fetched at once at least."""
_ENDS = 4
"""Blocks that are fetched at the beginning and the end of an object: there headers lie."""
_KEPT = 1 << 20
"""Bytes of a read that is kept, at most."""
_ROOM = 8 << 20
"""Bytes that are kept of all objects."""
_STEP = 1 << 18
"""Bytes of an answer that are taken at once: less holds less memory per connection."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as it was when it was found. Without an ``etag`` it is told by the time at which it
    was ``modified``, and by its size. ``fixed``: what the location names never changes."""

    name: str
    location: Location
    size: int
    etag: str | None
    modified: datetime | None
    fixed: bool = False

    forks = False

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.name, self.etag or self.modified, self.size)

    @property
    def version(self) -> str:
        return self.etag or str(self.modified)

    @property
    def pinned(self) -> bool:
        """Whether each request says which version is meant."""
        return self.fixed or self.etag is not None

    def open(self) -> OpenStored:
        return OpenStored(self)

    def check(self) -> None:
        if not self.fixed and not self.is_still(call(_head, self.name, self.location)):
            raise ChangedError(self.name)

    def is_still(self, meta: ObjectMeta) -> bool:
        """Whether it is what it was, going by what a store says now: not all servers look at the
        version that is asked for."""
        if self.fixed:
            return meta["size"] == self.size
        now = of_meta(self.name, self.location, meta)
        same_time = self.etag is not None or now.modified == self.modified
        return (now.etag, now.size) == (self.etag, self.size) and same_time

    def fetch(
        self, offset: int, out: memoryview, on_progress: Callable[[int], object] = lambda done: None
    ) -> None:
        """Fill ``out`` with the bytes at ``offset``, in one request; in a thread of its own.
        ``on_progress`` is told how many there are. InputError."""
        import obstore

        options: GetOptions = {"range": (offset, offset + len(out))}
        if self.etag is not None and not self.fixed:
            options["if_match"] = self.etag
        elif self.modified is not None and not self.fixed:
            options["if_unmodified_since"] = self.modified
        done = 0
        with errors(self.name):
            answer = obstore.get(store_of(self.location), self.location.key, options=options)
            if not self.is_still(answer.meta):
                raise ChangedError(self.name)
            for part in answer.stream(min_chunk_size=_STEP):
                if done + len(part) > len(out):
                    raise InputError(self.name, "the server sent more than it was asked for")
                out[done : done + len(part)] = part
                done += len(part)
                on_progress(done)
        if done < len(out):
            raise InputError(
                self.name,
                f"ends at byte {offset + done}, {len(out) - done} bytes short of its data",
            )


@contextmanager
def errors(name: str) -> Iterator[None]:
    """What a store says, as an InputError about ``name``."""
    try:
        yield
    except (SwavgError, Abandoned):
        raise
    except BaseException as error:  # a panic of obstore is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        from obstore.exceptions import PreconditionError

        if isinstance(error, PreconditionError):
            raise ChangedError(name) from None
        problem, hint = told(error)
        if is_denied(error):
            raise DeniedError(name, problem, hint=hint) from None
        absent = isinstance(error, FileNotFoundError)
        raise InputError(name, problem, hint=hint, absent=absent) from None


def look(name: str, location: Location) -> Stored:
    """The object that is there now; in a thread of its own. InputError."""
    return of_meta(name, location, _head(name, location))


def _head(name: str, location: Location) -> ObjectMeta:
    import obstore

    with errors(name):
        return obstore.head(store_of(location), location.key)


def of_meta(name: str, location: Location, meta: ObjectMeta) -> Stored:
    """The object that a store describes."""
    etag = meta["e_tag"]
    if etag is not None and etag.startswith("W/"):
        # By a weak one no range can be asked for.
        etag = None
    return Stored(name, location, meta["size"], etag, meta["last_modified"])


class _Kept:
    """Blocks of objects that were fetched, the latest: a header is read in several places, and
    again where a checkpoint is opened twice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[Stored, int], bytes] = OrderedDict()
        self._size = 0

    def get(self, source: Stored, number: int) -> bytes | None:
        with self._lock:
            block = self._blocks.get((source, number))
            if block is not None:
                self._blocks.move_to_end((source, number))
            return block

    def add(self, source: Stored, first: int, data: memoryview) -> None:
        """Whole blocks from the ``first`` on (the last may be that of the object)."""
        with self._lock:
            for number, start in enumerate(range(0, len(data), _BLOCK), first):
                block = bytes(data[start : start + _BLOCK])
                self._size += len(block) - len(self._blocks.pop((source, number), b""))
                self._blocks[source, number] = block
            while self._size > _ROOM:
                self._size -= len(self._blocks.popitem(last=False)[1])

    def fill(self, source: Stored, offset: int, out: memoryview) -> tuple[int, int]:
        """Fill the beginning and the end of ``out`` as far as they are known: between which of its
        bytes the rest lies."""
        low, high = 0, len(out)
        while low < high:
            number, at = divmod(offset + low, _BLOCK)
            block = self.get(source, number)
            if block is None:
                break
            part = block[at : at + high - low]
            out[low : low + len(part)] = part
            low += len(part)
        while low < high:
            number, at = divmod(offset + high - 1, _BLOCK)
            block = self.get(source, number)
            if block is None:
                break
            size = min(at + 1, high - low)
            out[high - size : high] = block[at + 1 - size : at + 1]
            high -= size
        return low, high


_kept = _Kept()


def fill_kept(source: Stored, offset: int, out: memoryview) -> tuple[int, int]:
    """Fill the beginning and the end of ``out`` as far as was fetched before: between which of its
    bytes the rest lies."""
    return _kept.fill(source, offset, out)


@dataclass(frozen=True, slots=True)
class OpenStored:
    """An object that is read where nobody has said what will be."""

    source: Stored

    def read_into(self, offset: int, out: memoryview) -> None:
        source = self.source
        if offset + len(out) > source.size:
            raise InputError(source.name, f"ends at byte {source.size}, short of its data")
        low, high = _kept.fill(source, offset, out)
        if low >= high:
            return
        if high - low > _KEPT:
            call(source.fetch, offset + low, out[low:high])
            return
        first, last = (offset + low) // _BLOCK, (offset + high - 1) // _BLOCK
        blocks = -(-source.size // _BLOCK)
        if first == 0:
            last = max(last, min(blocks, _ENDS) - 1)
        if last >= blocks - 2:
            first, last = max(0, min(first, blocks - _ENDS)), blocks - 1
        begin_at = first * _BLOCK
        data = memoryview(bytearray(min((last + 1) * _BLOCK, source.size) - begin_at))
        call(source.fetch, begin_at, data)
        _kept.add(source, first, data)
        out[low:high] = data[offset + low - begin_at : offset + high - begin_at]

    def close(self) -> None:
        """There is nothing to give back."""
