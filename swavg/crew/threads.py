"""A crew of threads."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from swavg.computing import Computer, Found
from swavg.crew.base import Key, Slot, views
from swavg.pieces import Piece


class Threads:
    """A crew of threads."""

    def __init__(self, count: int, slots: Sequence[Slot], computer: Computer) -> None:
        self.slots = slots
        self._computer = computer
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="swavg")
        self._futures: dict[Key, Future[Found]] = {}

    def submit(self, key: Key, piece: Piece, slot: int) -> None:
        outs = views(self.slots[slot], piece)
        self._futures[key] = self._pool.submit(self._computer.compute, piece, outs)

    def result(self, key: Key) -> Found:
        return self._futures.pop(key).result()

    def abandon(self) -> None:
        for future in self._futures.values():
            future.cancel()
        wait([future for future in self._futures.values() if not future.cancelled()])
        self._futures.clear()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._computer.close()
        self.slots = ()
