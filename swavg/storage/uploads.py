"""Outputs in object stores: each object appears whole when all of it is there, or not at all.

What no store promises is that several objects appear at one moment, or that a large one appears
only if nothing is there: that is looked at before the first byte and before the last request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from swavg.errors import OutputError
from swavg.storage.destination import exists_error
from swavg.storage.protect import Input
from swavg.storage.sinks import Buffer
from swavg.storage.stores import Call, Location, begin, is_url, locate, store_of, told

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

WRITABLE = ("s3", "gs", "az", "abfss")
_MIB = 1 << 20
_PART = 8 * _MIB
"""Bytes of a part, and of what is sent in one request; more only of an object of many parts."""
_PARTS = 9000
"""A store takes 10,000 parts of an object."""
_SENDING = 3
"""Parts that are on their way at once, if they fit into the room."""
_ROOM = 128 * _MIB
_PIECE = _MIB
"""Bytes that are handed over at once."""
_POLL = 0.1
_SECONDS = 1.5
"""The time to take back what was sent, before it is left to the store's own rules."""
_LISTED = 4


def part_size(size: int) -> int:
    """Bytes of a part of an object of ``size`` bytes."""
    return max(_PART, -(-size // (_PARTS * _MIB)) * _MIB)


def _sending(size: int) -> int:
    return max(1, min(_SENDING, _ROOM // part_size(size) - 1))


def buffers(size: int) -> int:
    """Bytes that sending an object of ``size`` bytes holds at most."""
    return min(size, (_sending(size) + 1) * part_size(size) + _PIECE)


def writable(url: str) -> Location:
    """Where a URL leads. OutputError for one to which nothing is written, RequestError where
    credentials are missing."""
    scheme, slashes, rest = url.partition("://")
    if not slashes:
        bare = url.partition(":")[0]
        raise OutputError(
            url,
            f"is neither a path nor a URL: {bare}: is followed by two slashes",
            hint="Give a URL as text: pathlib makes one slash of two.",
        )
    if scheme not in WRITABLE:
        hint = "Write to a local path, and upload that; or to s3://, gs://, az:// or abfss://."
        if scheme == "hf":
            repository = "/".join(rest.partition("@")[0].split("/")[:2])
            hint = f"Write to a local folder, and then: hf upload {repository} FOLDER"
        raise OutputError(url, f"nothing is written to {scheme}://", hint=hint)
    location = locate(url)
    store_of(location)
    return location


def check_not_input(location: Location, inputs: Sequence[Input], *, folder: bool) -> None:
    """OutputError if an object at ``location``, or one in the ``folder`` there, would touch an
    input."""
    own = _place(location)
    for given, sources in inputs:
        names = [source.name for source in sources]
        for name in dict.fromkeys((given, *names)):
            if not is_url(name):
                continue
            other = _place(locate(name))
            if own == other or (folder and _is_below(other, own)):
                problem = "is an input" if own == other else f"holds the input {given}"
            elif given not in names and _is_below(own, _place(locate(given))):
                problem = f"lies in the input {given}"
            else:
                continue
            hint = "swavg never writes over an input; choose another -o."
            raise OutputError(location.url, problem, hint=hint)


def _place(location: Location) -> tuple[str, str, str]:
    """The same for all spellings of a URL."""
    scheme = "az" if location.scheme == "abfss" else location.scheme
    return scheme, location.bucket.partition("@")[0], location.key


def _is_below(place: tuple[str, str, str], folder: tuple[str, str, str]) -> bool:
    return place[:2] == folder[:2] and (not folder[2] or place[2].startswith(f"{folder[2]}/"))


def check_absent(
    location: Location, *, force: bool, stop: Callable[[], None] = lambda: None
) -> None:
    """OutputExistsError if there is an object that may not be replaced. OutputError if that cannot
    be told."""
    import obstore

    if not location.key:
        raise OutputError(location.url, "names no object", hint="Write a name behind the bucket.")
    if force:
        return
    with suppress(FileNotFoundError):
        _ask(location, obstore.head, location.key, stop=stop, doing="cannot be looked for")
        raise exists_error(location.url, "exists already")


def check_folder(location: Location, names: Collection[str], *, force: bool) -> None:
    """As :func:`check_absent` for a folder in which ``names`` are written. With ``force`` nothing
    else may lie there: it would be taken for a part of the new checkpoint."""
    import obstore

    start = len(location.key) + 1 if location.key else 0
    foreign: list[str] = []

    def look(store: ObjectStore, prefix: str | None) -> None:
        for meta in chain.from_iterable(obstore.list(store, prefix, chunk_size=1000)):
            name = meta["path"][start:]
            if name and not force:
                raise exists_error(location.url, "exists already")
            if name and name not in names:
                foreign.append(name)
            if len(foreign) > _LISTED:
                return

    with _bucket(location):
        _ask(location, look, location.key or None, doing="cannot be looked into")
    if foreign:
        raise OutputError(
            location.url,
            "would be replaced, but holds what the new checkpoint does not:"
            f" {', '.join(foreign[:_LISTED])}{', ...' * (len(foreign) > _LISTED)}",
            hint="Choose another -o, or remove that yourself.",
        )


class Uploads:
    """The objects of one output at ``location``, one of which is sent at a time. A context manager:
    if the block fails nothing is left, but for what was replaced with ``force``."""

    def __init__(self, location: Location, *, force: bool) -> None:
        self._location, self._force = location, force
        self._turn = threading.Semaphore()
        self._made: list[Upload] = []

    def create(self, name: str = "", size: int = 0, *, last: bool = False) -> Upload:
        """The object itself, or the one of this ``name`` in the folder, of ``size`` bytes. It
        appears when all are sent; if it is the ``last``, when it is ended."""
        place = self._location
        if name:
            key = f"{place.key}/{name}" if place.key else name
            place = Location(place.scheme, place.bucket, key)
        upload = Upload(place, size, self._turn, force=self._force, last=last)
        self._made.append(upload)
        if not size and not last:
            upload.end()
        return upload

    def remove(self, names: Collection[str]) -> None:
        """Remove these, if they are there, before what they tell of is replaced. OutputError."""
        import obstore

        for name in names:
            key = f"{self._location.key}/{name}".lstrip("/")
            with suppress(FileNotFoundError):
                _ask(self._location, obstore.delete, key)

    def verify(self) -> None:
        """OutputError unless each object is there as it was sent."""
        for upload in self._made:
            upload.verify()

    def __enter__(self) -> Uploads:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        for upload in self._made:
            upload.abort(error)
        done = [upload.location.key for upload in self._made if upload.ended]
        if done and not self._force:
            import obstore

            _ended(begin(obstore.delete, store_of(self._location), done), _SECONDS)


class Upload:
    """An object that is sent in order, in parts, while more is written."""

    def __init__(
        self, location: Location, size: int, turn: threading.Semaphore, *, force: bool, last: bool
    ) -> None:
        self.location, self.size, self.ended = location, size, False
        self._force, self._last, self._turn = force, last, turn
        self._begun = False
        self._taken = 0
        self._held = bytearray()
        self._writer: Any = None
        self._using = threading.Lock()

    def write(self, data: Buffer, stop: Callable[[], None] = lambda: None) -> None:
        """Take all of ``data``, or raise OutputError; ``stop`` is called while it waits."""
        self._begin(stop)
        self._held += data
        self._taken += len(data)
        if self._is_large and len(self._held) >= _PIECE:
            self._hand_over(stop)
        if self._taken == self.size and not self._last:
            self.end(stop)

    def pwrite(self, offset: int, data: Buffer) -> None:
        """:meth:`write` what follows."""
        assert offset == self._taken, f"{offset} was written, and {self._taken} is next"
        if data:
            self.write(data)

    def end(self, stop: Callable[[], None] = lambda: None) -> None:
        """Let it appear, unless it has. OutputError."""
        import obstore

        if self.ended:
            return
        assert self._taken == self.size, f"{self._taken} bytes written, {self.size} planned"
        self._begin(stop)
        if self._is_large:
            self._hand_over(stop)
            # The run may have taken an hour, in which someone put something there.
            check_absent(self.location, force=self._force, stop=stop)
            self._send(self._writer.close, stop, ends=True)
        else:
            store, data = store_of(self.location), bytes(self._held)
            mode: Literal["create", "overwrite"] = "overwrite" if self._force else "create"
            put = partial(obstore.put, store, self.location.key, data, mode=mode)
            self._send(put, stop, ends=True)
        self._turn.release()

    def verify(self) -> None:
        """OutputError unless it is there as it was sent."""
        import obstore

        doing = "was sent, but cannot be looked at"
        try:
            size = _ask(self.location, obstore.head, self.location.key, doing=doing)["size"]
        except FileNotFoundError:
            raise OutputError(self.location.url, "was sent, but is not there") from None
        if size != self.size:
            raise OutputError(self.location.url, f"has {size:,} bytes, and {self.size:,} were sent")

    def abort(self, error: BaseException) -> None:
        """Take back what was sent of an object that has not appeared, if that can be soon."""
        if self._using.acquire(timeout=_SECONDS) and self._writer is not None and not self.ended:
            _ended(begin(self._writer.__exit__, type(error), error, None), _SECONDS)

    @property
    def _is_large(self) -> bool:
        return self.size > _PART

    def _begin(self, stop: Callable[[], None]) -> None:
        while not self._begun:
            self._begun = self._turn.acquire(timeout=_POLL)
            stop()

    def _hand_over(self, stop: Callable[[], None]) -> None:
        """Send what is held, which nobody may write into again: it is not copied."""
        import obstore

        data, self._held = self._held, bytearray()
        if self._writer is None:
            self._writer = obstore.open_writer(
                store_of(self.location),
                self.location.key,
                buffer_size=part_size(self.size),
                max_concurrency=_sending(self.size),
            )
        if data:
            self._send(partial(self._writer.write, data), stop)

    def _send(
        self, function: Callable[[], object], stop: Callable[[], None], *, ends: bool = False
    ) -> None:
        def alone(_: ObjectStore) -> None:
            with self._using:
                function()
                # Whoever waits may have been interrupted.
                self.ended |= ends

        with _bucket(self.location):
            _ask(self.location, alone, stop=stop)


@contextmanager
def _bucket(location: Location) -> Iterator[None]:
    """OutputError where there is no bucket."""
    try:
        yield
    except FileNotFoundError:
        raise OutputError(location.url, "there is no such bucket") from None


def _ended(made: Call[Any], seconds: float) -> bool:
    """Whether a call has ended, which is waited for so long."""
    with made.changed:
        return made.changed.wait_for(lambda: made.done, seconds)


def _ask(
    location: Location,
    function: Callable[..., T],
    *args: object,
    stop: Callable[[], None] = lambda: None,
    doing: str = "cannot be written",
) -> T:
    """What a call of the store returns; ``stop`` is called while it lasts. FileNotFoundError where
    there is nothing; OutputError for what else the store says."""
    from obstore import exceptions

    made = begin(function, store_of(location), *args)
    while not _ended(made, _POLL):
        stop()
    try:
        return made.result()
    except (FileNotFoundError, InterruptedError):
        raise
    except exceptions.AlreadyExistsError:
        raise exists_error(location.url, "was created by someone else meanwhile") from None
    except (OSError, exceptions.BaseError) as error:
        problem, hint = told(error)
        raise OutputError(location.url, f"{doing}: {problem}", hint=hint) from None
