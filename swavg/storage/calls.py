"""Calls of stores, each in a thread that nobody has to wait for: a call of ``obstore`` does not
heed an interrupt before it has ended."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from swavg.errors import RequestError

T = TypeVar("T")

_MOST_CALLS = 64
"""Calls of stores at the same time."""


class Abandoned(Exception):
    """Nobody wants to know any more what becomes of a call."""


class Call(Generic[T]):
    """A call that was handed to a thread, by the thread that waits for it. ``changed`` is told of
    its end, and by whoever has done a part of it."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self.owner = threading.get_ident()
        self._value: T
        self.changed = threading.Condition()
        self.done = False
        self.error: BaseException | None = None

    def run(self) -> None:
        """Make the call, unless it was ended before it began."""
        error = None
        if not self.done:
            try:
                self._value = self._function()
            except BaseException as failure:  # what panics in obstore is no Exception
                error = failure
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        """Let whoever waits go on, unless it has ended before."""
        with self.changed:
            if not self.done:
                self.done, self.error = True, error
            self.changed.notify_all()

    def wait(self, ready: Callable[[], bool]) -> None:
        """Wait until it is ready, or has ended: raises what it raised. An interrupt ends the wait,
        and so does :func:`abandoned`."""
        with self.changed:
            while not self.done and not ready():
                if self.owner in _abandoned:
                    raise Abandoned
                self.changed.wait()
        if self.error is not None:
            raise self.error

    def result(self) -> T:
        """What it returned, or raised."""
        self.wait(lambda: False)
        return self._value


_this_thread = threading.local()
_abandoned: set[int] = set()
"""Threads that are to wait for no call any more."""


class _Callers:
    """Daemon threads that make calls: started when they are needed, and never waited for."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Call[Any]] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._process = 0
        """The one that made the first call."""
        self.pending: set[Call[Any]] = set()

    def submit(self, made: Call[Any]) -> None:
        self._process = self._process or os.getpid()
        if self._process != os.getpid():
            raise RequestError(
                "Object stores were used before this process was forked, and cannot be used in it.",
                hint='Start it with multiprocessing.get_context("spawn").',
            )
        with self._lock:
            self.pending.add(made)
            more = len(self.pending) > self._threads and self._threads < _MOST_CALLS
            self._threads += more
        self._calls.put(made)
        if more:
            try:
                threading.Thread(target=self._work, daemon=True, name="swavg-store").start()
            except RuntimeError:
                # The system allows no more: those that there are do it.
                with self._lock:
                    self._threads -= 1
                    if not self._threads:
                        raise

    def _work(self) -> None:
        _this_thread.makes_calls = True
        while True:
            made = self._calls.get()
            made.run()
            with self._lock:
                self.pending.discard(made)

    def of(self, owners: Collection[int]) -> list[Call[Any]]:
        """What these threads may be waiting for."""
        with self._lock:
            return [made for made in self.pending if made.owner in owners]


_callers = _Callers()


def submit(made: Call[Any]) -> None:
    """Begin a call of a store, beside others."""
    _callers.submit(made)


def begin(function: Callable[..., T], *args: object, **options: object) -> Call[T]:
    """The call of a store, which has begun."""
    made = Call(partial(function, *args, **options))
    submit(made)
    return made


def call(function: Callable[..., T], *args: object, **options: object) -> T:
    """A call of a store whose wait ends with an interrupt. What it raises is raised."""
    if getattr(_this_thread, "makes_calls", False):
        return function(*args, **options)
    return begin(function, *args, **options).result()


@contextmanager
def abandoned(owners: Collection[int]) -> Iterator[None]:
    """In the block these threads wait for no call: it raises Abandoned in them."""
    _abandoned.update(owners)
    for made in _callers.of(owners):
        made.end(Abandoned())
    try:
        yield
    finally:
        _abandoned.difference_update(owners)
