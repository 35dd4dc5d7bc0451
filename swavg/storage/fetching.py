"""What is read next of objects, fetched side by side."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from swavg.storage.calls import Abandoned, Call, submit
from swavg.storage.stored import Stored, fill_kept

if TYPE_CHECKING:
    from swavg.storage.sources import Source

_GAP = 4096
"""Bytes between two ranges that are fetched with them."""


class _Segment:
    """A range that is being fetched."""

    def __init__(self, source: Stored, start: int, stop: int, data: memoryview) -> None:
        self.start, self.stop = start, stop
        self._source = source
        self._data = data
        self._low, self._high = fill_kept(source, start, self._data)
        self._filled = self._low
        self._call = Call(self._fetch)

    @property
    def ended(self) -> bool:
        return self._call.done

    def begin(self) -> None:
        if self._low < self._high:
            submit(self._call)
        else:
            self._call.end(None)

    def _fetch(self) -> None:
        data = self._data[self._low : self._high]
        self._source.fetch(self.start + self._low, data, self._add)

    def _add(self, done: int) -> None:
        with self._call.changed:
            if self._call.done:
                # Nobody waits for it any more.
                raise Abandoned
            self._filled = self._low + done
            self._call.changed.notify_all()

    def read_into(self, offset: int, out: memoryview) -> None:
        at = offset - self.start
        stop = at + len(out)
        self._call.wait(lambda: self._filled >= stop)
        out[:] = self._data[at:stop]


class Fetching:
    """What a task said that it will read of objects: all of it is fetched at once."""

    def __init__(
        self, ranges: Iterable[tuple[Source, int, int]], before: Fetching | None = None
    ) -> None:
        """``ranges`` are sources with the bytes ``[start, stop)`` of them; of sources that are no
        objects nothing is fetched. The room of what was fetched ``before`` is used again."""
        by_source: dict[Stored, list[tuple[int, int]]] = {}
        for source, start, stop in ranges:
            if isinstance(source, Stored):
                # Whoever reads beyond the end is told so then.
                by_source.setdefault(source, []).append((start, min(stop, source.size)))
        wanted = {source: [*joined(own)] for source, own in by_source.items()}
        size = sum(stop - start for own in wanted.values() for start, stop in own)
        room = b"" if before is None else before.free()
        self._room = room if len(room) >= size else bytearray(size)
        self._segments: dict[Stored, list[_Segment]] = {}
        rest = memoryview(self._room)
        for source, own in wanted.items():
            segments = self._segments[source] = []
            for start, stop in own:
                segments.append(_Segment(source, start, stop, rest[: stop - start]))
                rest = rest[stop - start :]
        self._starts = {
            source: [each.start for each in own] for source, own in self._segments.items()
        }
        for segments in self._segments.values():
            for segment in segments:
                segment.begin()

    def free(self) -> bytearray | bytes:
        """The room, if nothing is written there any more."""
        ended = all(segment.ended for own in self._segments.values() for segment in own)
        return self._room if ended else b""

    def read_into(self, source: Source, offset: int, out: memoryview) -> bool:
        """Fill ``out``; False if that was not expected."""
        if not isinstance(source, Stored) or source not in self._segments:
            return False
        place = bisect_right(self._starts[source], offset) - 1
        segment = self._segments[source][place]
        if not segment.start <= offset <= offset + len(out) <= segment.stop:
            return False
        segment.read_into(offset, out)
        return True


def joined(ranges: Sequence[tuple[int, int]], gap: int = _GAP) -> Iterator[tuple[int, int]]:
    """The ranges in order, those that touch or have at most a ``gap`` between them as one."""
    start = stop = -1
    for low, high in sorted(ranges):
        if stop >= 0 and low <= stop + gap:
            stop = max(stop, high)
        else:
            if start < stop:
                yield start, stop
            start, stop = low, high
    if start < stop:
        yield start, stop
