"""Results of tasks in a journal: as plain values, and compared with the files that they tell of."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

from swavg.engine.batches import BytesRead
from swavg.engine.results import Checksum, Sinks, TaskResult, Written
from swavg.storage.journals import Facts, Journal
from swavg.storage.sinks import FileSink

_CHUNK = 1 << 20
"""Bytes that are read back at once."""


def still_written(journal: Journal, sinks: Sinks) -> Iterator[TaskResult]:
    """The results in a journal, but for those whose bytes are no longer what it says."""
    for result in map(as_result, journal.records):
        if all(
            _is_there(cast(FileSink, sinks[each.row][each.file]), each) for each in result.wrote
        ):
            yield result


def _is_there(sink: FileSink, written: Written) -> bool:
    """Whether a file has the bytes that were written, by their checksum."""
    crc, end = 0, written.offset + written.nbytes
    for offset in range(written.offset, end, _CHUNK):
        crc = zlib.crc32(os.pread(sink.fd, min(_CHUNK, end - offset), offset), crc)
    return crc == written.crc


def as_record(result: TaskResult) -> Facts:
    """A result as plain values for JSON."""
    record = asdict(result)
    for name in ("nonfinite", "differing"):
        record[name] = sorted(record[name])
    return record


def as_result(record: Facts) -> TaskResult:
    """What :func:`as_record` made plain, from a line of JSON."""
    from swavg.engine.distances import Sums

    values: dict[str, Any] = dict(record)
    return TaskResult(
        values["number"],
        values["read"],
        values["written"],
        [Checksum(**each) for each in values["checksums"]],
        _pairs(values["nonfinite"]),
        _pairs(values["differing"]),
        [(row, Sums(**_tuples(sums))) for row, sums in values["distances"]],
        [BytesRead(*each) for each in values["reads"]],
        [Written(*each) for each in values["wrote"]],
        values["node"],
        values["lost"],
    )


def _pairs(values: Iterable[Sequence[int]]) -> set[tuple[int, int]]:
    return {(row, entry) for row, entry in values}


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
