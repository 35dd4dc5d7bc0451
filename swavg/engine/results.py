"""What comes of a task: numbers, checksums, and what was noticed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from swavg.engine.batches import BytesRead
from swavg.storage.crc import combined
from swavg.storage.sinks import Sink

if TYPE_CHECKING:
    from swavg.engine.distances import Sums

Sinks = Sequence[Sequence[Sink]]
"""By row and file."""


@dataclass(frozen=True, slots=True)
class Checksum:
    """The checksum of ``nbytes`` from ``start`` on of the region at ``offset`` of a file."""

    row: int
    file: int
    offset: int
    start: int
    nbytes: int
    crc: int


class Written(NamedTuple):
    """``nbytes`` that were written at ``offset`` of a row's file, and their CRC-32."""

    row: int
    file: int
    offset: int
    nbytes: int
    crc: int


@dataclass(slots=True)
class TaskResult:
    """What came of a task: bytes read and written; which entries of a row hold values that are not
    finite (and are let through), or integers that differ, as ``(row, entry)``."""

    number: int
    read: int = 0
    written: int = 0
    checksums: list[Checksum] = field(default_factory=list)
    nonfinite: set[tuple[int, int]] = field(default_factory=set)
    differing: set[tuple[int, int]] = field(default_factory=set)
    distances: list[tuple[int, Sums]] = field(default_factory=list)
    reads: list[BytesRead] = field(default_factory=list)
    """Of inputs whose own checksums are compared."""
    wrote: list[Written] = field(default_factory=list)
    """What was written, where a journal is kept."""
    node: str = ""
    """That of a cluster which did it."""
    lost: int = 0
    """Times that it was begun by a worker that was lost."""

    def record(self, made: Written) -> None:
        """Add what was written, to what was written right before it if it follows that."""
        last = self.wrote[-1] if self.wrote else None
        if last and (last.row, last.file, last.offset + last.nbytes) == made[:3]:
            crc = combined(((last.crc, last.nbytes), (made.crc, made.nbytes)))
            self.wrote[-1] = last._replace(nbytes=last.nbytes + made.nbytes, crc=crc)
        else:
            self.wrote.append(made)
