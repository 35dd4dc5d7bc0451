"""What a crew is, and the memory that it computes into."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Protocol

from swavg.computing import Found
from swavg.pieces import Piece

Slot = tuple[memoryview, ...]
"""Room for one chunk, a buffer per output."""

Key = tuple[int, int]
"""A piece: which round of layouts, and its number therein."""


class Crew(Protocol):
    """Computes pieces into slots. ``result`` waits for a piece that was submitted, and raises what
    computing it raised; ``abandon`` gives up all that were submitted and not asked for."""

    slots: Sequence[Slot]

    def submit(self, key: Key, piece: Piece, slot: int) -> None: ...

    def result(self, key: Key) -> Found: ...

    def abandon(self) -> None: ...

    def close(self) -> None: ...


def room(slots: int, rows: int, size: int) -> list[Slot]:
    """Slots of ``rows`` buffers of ``size`` bytes each, in memory that forked processes share.

    Pages that are never used take no memory."""
    whole = memoryview(mmap.mmap(-1, max(1, slots * rows * size)))
    buffers = [whole[at * size : (at + 1) * size] for at in range(slots * rows)]
    return [tuple(buffers[at * rows : (at + 1) * rows]) for at in range(slots)]


def views(slot: Slot, piece: Piece) -> Slot:
    """The part of a slot that a piece fills."""
    # Fewer rows than buffers where a run has outputs of several kinds.
    return tuple(buffer[: piece.nbytes] for buffer in slot[: len(piece.rows)])
