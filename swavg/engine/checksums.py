"""Whether the bytes that were read are those that their file's own checksums tell of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from swavg.engine.batches import BytesRead
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.records import Record, checksum_of, damaged
from swavg.planning.plan import Plan
from swavg.storage.crc import Checksum, combined, crc_function
from swavg.storage.pool import Pool

_SMALL = 4 << 20
"""Bytes of a record up to which it is read here if it was not before (the pickle, say)."""

CrcFunction = Callable[[memoryview], int]


def checked_members(plan: Plan, *, everything: bool) -> Mapping[int, CrcFunction]:
    """What computes the checksums of what is read of a member, for those that are compared: those
    whose format wants it, or all."""
    return {
        member: crc_function(checkpoint.extras.checksum)
        for member, checkpoint in enumerate(plan.checkpoints)
        if everything or checkpoint.extras.always_checked
    }


class Reads:
    """Collects what was read during a run, in any order."""

    def __init__(self) -> None:
        self._parts: dict[tuple[int, int], dict[int, tuple[int, int]]] = {}

    def add(self, reads: Sequence[BytesRead]) -> None:
        """The longest read from each offset counts."""
        for member, source, offset, nbytes, crc in reads:
            parts = self._parts.setdefault((member, source), {})
            parts[offset] = max(parts.get(offset, (0, 0)), (nbytes, crc))

    def compare(self, plan: Plan, *, everything: bool) -> list[str]:
        """A note on how many records were compared, if all were to be. InputError for one that is
        not what its checksum tells of."""
        compared = passed_over = 0
        with Pool() as pool:
            for member in checked_members(plan, everything=everything):
                checkpoint = plan.checkpoints[member]
                for known in self._compared(checkpoint, member, pool, everything=everything):
                    compared += known
                    passed_over += not known
        if not everything:
            return []
        if not compared + passed_over:
            return ["no input holds checksums of its bytes"]
        rest = f"; {passed_over:,} were not read whole" if passed_over else ""
        return [f"{compared:,} records have the checksum that their file tells of{rest}"]

    def _compared(
        self, checkpoint: Checkpoint, member: int, pool: Pool, *, everything: bool
    ) -> Iterator[bool]:
        """For each record of a member, whether its checksum is known and right. It is read again
        if it was not read in one go; one that was not read at all, if ``everything`` is wanted."""
        extras, kind = checkpoint.extras, checkpoint.extras.checksum
        for source, records in extras.records.items():
            file, parts = checkpoint.sources[source], self._parts.get((member, source), {})
            for record in records:
                found = _joined(parts, record, kind)
                wanted = record.offset in parts
                if everything:
                    wanted = record.size <= _SMALL or extras.always_checked
                if found is None and wanted:
                    found = checksum_of(pool, file, record, kind)
                if found not in (None, record.crc):
                    raise damaged(file.name, record, kind)
                yield found is not None


def _joined(parts: dict[int, tuple[int, int]], record: Record, kind: Checksum) -> int | None:
    """The checksum of a record, from those of its parts; None if it was not read whole."""

    def pieces() -> Iterator[tuple[int, int]]:
        at = record.offset
        while at < record.offset + record.size:
            nbytes, crc = parts[at]
            if not nbytes:
                raise KeyError(at)
            yield crc, nbytes
            at += nbytes
        if at > record.offset + record.size:
            raise KeyError(at)

    try:
        return combined(pieces(), kind)
    except KeyError:
        return None
