"""Stretches of files whose checksums a checkpoint tells, and whether their bytes have them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from swavg.errors import InputError
from swavg.storage.crc import SHOWN, Checksum, combined, crc_function
from swavg.storage.pool import Pool
from swavg.storage.sources import Source

_READ = 1 << 20


class Record(NamedTuple):
    """``size`` bytes of a source from ``offset`` on, and their checksum as the checkpoint says."""

    name: str
    offset: int
    size: int
    crc: int


def checksum_of(pool: Pool, file: Source, record: Record, kind: Checksum) -> int:
    """The checksum that the bytes of a record have. InputError if they cannot be read."""
    return combined(_parts(pool, file, record, crc_function(kind)), kind)


def _parts(
    pool: Pool, file: Source, record: Record, crc_of: Callable[[memoryview], int]
) -> Iterator[tuple[int, int]]:
    for start in range(0, record.size, _READ):
        size = min(_READ, record.size - start)
        yield crc_of(memoryview(pool.read(file, record.offset + start, size))), size


def damaged(path: str, record: Record, kind: Checksum) -> InputError:
    """The error for a record that does not have its checksum."""
    hint = None
    if kind == "crc32":
        hint = "If torch wrote it without (set_crc32_options), leave check_crc=True out."
    problem = f"its record '{record.name}' does not have the {SHOWN[kind]} that is told of it"
    return InputError(path, f"is damaged: {problem}", hint=hint)


class Unchecked:
    """The records of a checkpoint that were not compared with their checksum yet."""

    def __init__(
        self, sources: Sequence[Source], records: Mapping[int, Iterable[Record]], kind: Checksum
    ) -> None:
        self._sources, self._kind = sources, kind
        self._records = {
            (source, record.offset): record
            for source, own in records.items()
            for record in own
            if record.size
        }

    def check(self, pool: Pool, places: Iterable[tuple[int, int]]) -> None:
        """Compare the records that begin at places, each a source and an offset, once and whole.
        InputError for one that is damaged."""
        for place in places:
            if place in self._records:
                # Other threads that read the same tensor wait for it.
                with _CHECKING:
                    self._check(pool, place)

    def _check(self, pool: Pool, place: tuple[int, int]) -> None:
        record, file = self._records.get(place), self._sources[place[0]]
        if record is not None:
            if checksum_of(pool, file, record, self._kind) != record.crc:
                raise damaged(file.name, record, self._kind)
            del self._records[place]


_CHECKING = threading.Lock()
