"""Reading many small places of a file with few requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

Read = Callable[[int, int], "bytes | bytearray"]
"""``read(offset, size)``: just these bytes; InputError if they cannot be read."""

# A gap that is cheaper to read than to skip; and the largest request.
_GAP = 4096
_MAX_BLOCK = 1 << 20


def read_places(
    read: Read, places: Iterable[tuple[int, int]]
) -> Iterator[tuple[bytes | bytearray, int]]:
    """Per place (offset and size, ascending) a block of bytes and where in it the place starts."""
    group: list[int] = []
    start = end = 0
    for offset, size in chain(places, ((1 << 63, 0),)):
        if group and (offset - end > _GAP or offset + size - start > _MAX_BLOCK):
            block = read(start, end - start)
            for first in group:
                yield block, first - start
            group.clear()
        if not group:
            start = end = offset
        group.append(offset)
        end = max(end, offset + size)
