"""Results of tasks in a journal: as plain values, and compared with the files that they tell of."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

from swavg.engine.batches import BytesRead
from swavg.engine.results import Checksum, Sinks, TaskResult, Written
from swavg.planning.plan import Plan
from swavg.storage.journals import Facts, Journal
from swavg.storage.paths import check_all, in_store
from swavg.storage.sinks import FileSink
from swavg.storage.sources import Source

_CHUNK = 1 << 20
"""Bytes that are read back at once."""


def recorded(journal: Journal, plan: Plan, numbers: Sequence[int]) -> Iterator[TaskResult]:
    """The results of these tasks in a journal, a task perhaps more than once: it was done again
    where its bytes were lost. OutputError for what no run of this plan has written."""
    for record in journal.records:
        try:
            result = as_result(record)
            _check(result, plan, numbers)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise journal.damaged() from None
        yield result


def _check(result: TaskResult, plan: Plan, numbers: Sequence[int]) -> None:
    """ValueError or IndexError for a task of another part, or a place that the plan has not."""
    if result.number not in numbers:
        raise ValueError(result.number)
    for row, file, offset, nbytes, _ in result.wrote:
        if not 0 <= offset <= offset + nbytes <= plan.outputs[row].files[file].layout.size:
            raise ValueError(offset)
    for row, entry in result.nonfinite | result.differing:
        plan.outputs[row].home[entry]


def still_written(results: Iterable[TaskResult], sinks: Sinks) -> Iterator[TaskResult]:
    """The results but for those whose bytes are no longer what they tell of."""
    for result in results:
        if all(
            _is_there(cast(FileSink, sinks[each.row][each.file]), each) for each in result.wrote
        ):
            yield result


def write_down(
    results: Iterable[TaskResult], journal: Journal, sources: Iterable[Source]
) -> Iterator[TaskResult]:
    """Hand results on. They are written down once the files that were read are known to be still
    what they were: else what is put back later, with its time, would stand beside what it was
    meanwhile. InputError."""
    files = [source for source in sources if not in_store(source)]
    pending: list[TaskResult] = []
    due = 0.0

    def write() -> None:
        check_all(files)
        for result in pending:
            journal.add(as_record(result))
        pending.clear()

    for result in results:
        pending.append(result)
        if (begun := time.monotonic()) >= due:
            write()
            # However many files there are, looking at them takes little of the time.
            due = begun + 20 * (time.monotonic() - begun)
        yield result
    write()


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
