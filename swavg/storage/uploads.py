"""Outputs in object stores: each object appears whole when all of it is there, or not at all.

What no store promises is that several objects appear at one moment, or that a large one appears
only if nothing is there: that is looked at before the first byte and before the last request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from swavg.errors import OutputError, OutputExistsError
from swavg.storage.calls import begin
from swavg.storage.listed import forget
from swavg.storage.sinks import Buffer
from swavg.storage.stores import Location, store_of
from swavg.storage.upload_checks import ask, bucket_there, check_absent, ended

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_MIB = 1 << 20
_PART = 8 * _MIB
"""Bytes of a part, and of what is sent in one request; more only of an object of many parts."""
_PARTS = 9000
"""A store takes 10,000 parts of an object."""
_SENDING = 5
"""Parts that are on their way at once, if they fit into the room."""
_ROOM = 128 * _MIB
_PIECE = _MIB
"""Bytes that are handed over at once."""
_POLL = 0.1
_SECONDS = 20.0
_INTERRUPTED = 1.5
"""The time to take back what was sent, before it is left to the store's own rules."""


def part_size(size: int) -> int:
    """Bytes of a part of an object of ``size`` bytes."""
    return max(_PART, -(-size // (_PARTS * _MIB)) * _MIB)


def _sending(size: int) -> int:
    return max(1, min(_SENDING, _ROOM // part_size(size) - 1))


def buffers(size: int) -> int:
    """Bytes that sending an object of ``size`` bytes holds at most."""
    return min(size, (_sending(size) + 1) * part_size(size) + _PIECE)


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
        """With ``force``, remove these before what they tell of is replaced. OutputError."""
        import obstore

        for name in names if self._force else ():
            key = f"{self._location.key}/{name}".lstrip("/")
            with suppress(FileNotFoundError):
                ask(self._location, obstore.delete, key)

    def verify(self) -> None:
        """OutputError unless each object is there as it was sent."""
        for upload in self._made:
            upload.verify()

    def __enter__(self) -> Uploads:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        forget()
        if error is None:
            return
        seconds = _SECONDS if isinstance(error, Exception) else _INTERRUPTED
        until = time.monotonic() + seconds
        for upload in self._made:
            upload.abort(error, until)
        done = [upload.location.key for upload in self._made if upload.ended]
        if done and not self._force:
            import obstore

            ended(begin(obstore.delete, store_of(self._location), done), until - time.monotonic())


class Upload:
    """An object that is sent in order, in parts, while more is written."""

    def __init__(
        self, location: Location, size: int, turn: threading.Semaphore, *, force: bool, last: bool
    ) -> None:
        self.location, self.size, self.ended = location, size, False
        self._force, self._last, self._turn = force, last, turn
        self._begun = self._has_turn = False
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
        if self._taken == self.size:
            if self._last:
                # Others may still wait for their turn, whose end its own waits for.
                self._free()
            else:
                self.end(stop)

    def pwrite(self, offset: int, data: Buffer) -> None:
        """:meth:`write` what follows."""
        assert offset == self._taken, f"{offset} was written, and {self._taken} is next"
        if data:
            self.write(data)

    def end(self, stop: Callable[[], None] = lambda: None) -> None:
        """Let it appear, unless it has. OutputError."""
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
            self._put(bytes(self._held), stop)
        self._free()

    def _put(self, data: bytes, stop: Callable[[], None]) -> None:
        import obstore

        store, key = store_of(self.location), self.location.key
        mode: Literal["create", "overwrite"] = "overwrite" if self._force else "create"
        try:
            self._send(partial(obstore.put, store, key, data, mode=mode), stop, ends=True)
        except OutputExistsError:
            # A request whose answer was lost is made again, and finds what it made.
            found = ask(self.location, lambda store: bytes(obstore.get(store, key).bytes()))
            if found != data:
                raise
            self.ended = True

    def verify(self) -> None:
        """OutputError unless it is there as it was sent."""
        import obstore

        doing = "was sent, but cannot be looked at"
        try:
            size = ask(self.location, obstore.head, self.location.key, doing=doing)["size"]
        except FileNotFoundError:
            raise OutputError(self.location.url, "was sent, but is not there") from None
        if size != self.size:
            raise OutputError(self.location.url, f"has {size:,} bytes, and {self.size:,} were sent")

    def abort(self, error: BaseException, until: float) -> None:
        """Take back what was sent of an object that has not appeared, if that can be so soon."""
        there = self._using.acquire(timeout=max(0, until - time.monotonic()))
        if there and self._writer is not None and not self.ended:
            made = begin(self._writer.__exit__, type(error), error, None)
            ended(made, until - time.monotonic())

    @property
    def _is_large(self) -> bool:
        return self.size > _PART

    def _begin(self, stop: Callable[[], None]) -> None:
        while not self._begun:
            self._begun = self._has_turn = self._turn.acquire(timeout=_POLL)
            stop()

    def _free(self) -> None:
        if self._has_turn:
            self._has_turn = False
            self._turn.release()

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

        with bucket_there(self.location):
            ask(self.location, alone, stop=stop)
