"""Whether the bytes that were read are those that their file's own checksums tell of."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

from swavg.engine.batches import BytesRead
from swavg.errors import InputError
from swavg.formats.checkpoint import Checkpoint, Record
from swavg.storage.crc import combined
from swavg.storage.sources import Pool

_SMALL = 4 << 20
"""Bytes of a record up to which it is read here if it was not before (the pickle, say)."""


class Reads:
    """Collects what was read during a run, in any order."""

    def __init__(self) -> None:
        self._parts: dict[tuple[int, int], dict[int, tuple[int, int]]] = {}

    def add(self, reads: Sequence[BytesRead]) -> None:
        """The longest read from each offset counts."""
        for member, source, offset, nbytes, crc in reads:
            parts = self._parts.setdefault((member, source), {})
            parts[offset] = max(parts.get(offset, (0, 0)), (nbytes, crc))

    def compare(self, checkpoints: Sequence[Checkpoint]) -> list[str]:
        """A note on how many records were compared. InputError for one that is not what its
        checksum tells of."""
        compared = passed_over = 0
        with Pool() as pool:
            for member, checkpoint in enumerate(checkpoints):
                for source, records in checkpoint.extras.records.items():
                    file, parts = checkpoint.sources[source], self._parts.get((member, source), {})
                    for record in records:
                        found = _joined(parts, record)
                        if found is None and record.size <= _SMALL:
                            found = zlib.crc32(pool.read(file, record.offset, record.size))
                        compared += found is not None
                        passed_over += found is None
                        if found not in (None, record.crc):
                            raise InputError(
                                file.name,
                                f"is damaged: its record '{record.name}' does not have the CRC-32"
                                " that the zip's directory tells of",
                                hint="If torch wrote it without (set_crc32_options), leave"
                                " check_crc=True out.",
                            )
        if not compared + passed_over:
            return ["no input holds checksums of its bytes"]
        rest = f"; {passed_over:,} were not read whole" if passed_over else ""
        return [f"{compared:,} records have the CRC-32 that their file tells of{rest}"]


def _joined(parts: dict[int, tuple[int, int]], record: Record) -> int | None:
    """The CRC-32 of a record, from those of its parts; None if it was not read whole."""

    def pieces() -> Iterator[tuple[int, int]]:
        at = record.offset
        while at < record.offset + record.size:
            nbytes, crc = parts[at]
            yield crc, nbytes
            at += nbytes
        if at > record.offset + record.size:
            raise KeyError(at)

    try:
        return combined(pieces())
    except KeyError:
        return None
