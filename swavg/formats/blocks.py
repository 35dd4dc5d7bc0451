"""Reading many small places of a file with few requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

from swavg.storage.paths import FileReader

Read = Callable[[int, int], "bytes | bytearray"]
"""``read(offset, size)``: just these bytes; InputError if they cannot be read."""

# A gap that is cheaper to read than to skip; and the largest request.
_GAP = 4096
_MAX_BLOCK = 1 << 20
_AT_ONCE = 256
"""Requests to a store at the same time."""


def read_places(
    read: Read, places: Iterable[tuple[int, int]]
) -> Iterator[tuple[bytes | bytearray, int]]:
    """Per place (offset and size, ascending) a block of bytes and where in it the place starts."""
    groups = _groups(places)
    if isinstance(read, FileReader) and read.remote:
        groups = _expected(read, groups)
    for start, end, firsts in groups:
        block = read(start, end - start)
        for first in firsts:
            yield block, first - start


def _groups(places: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, list[int]]]:
    """Where a block starts and ends, and the places in it."""
    group: list[int] = []
    start = end = 0
    for offset, size in chain(places, ((1 << 63, 0),)):
        if group and (offset - end > _GAP or offset + size - start > _MAX_BLOCK):
            yield start, end, group
            group = []
        if not group:
            start = end = offset
        group.append(offset)
        end = max(end, offset + size)


def _expected(
    read: FileReader, groups: Iterator[tuple[int, int, list[int]]]
) -> Iterator[tuple[int, int, list[int]]]:
    """The same, fetched side by side."""
    while some := [*islice(groups, _AT_ONCE)]:
        read.expect((start, end) for start, end, _ in some)
        yield from some
