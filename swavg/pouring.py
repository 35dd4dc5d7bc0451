"""From chunks to files: one output or several side by side."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence

from swavg.formats.base import Layout
from swavg.publish import Sink

Chunks = Iterator[tuple[memoryview, ...]]


def pour(
    sinks: Sequence[Sink], layouts: Sequence[Layout], chunks: Chunks, tick: Callable[[], None]
) -> None:
    """Write each layout, framed, to its sink. ``chunks`` has a buffer per layout at a time;
    ``tick`` is called after each. Raises what reading or writing raises."""
    if len(sinks) == 1:
        for data in layouts[0].frame(only for (only,) in chunks):
            sinks[0].write(data)
            tick()
    elif all(layout.joined for layout in layouts):
        # Nothing stands between the chunks: one thread serves all outputs.
        for sink, layout in zip(sinks, layouts, strict=True):
            for data in layout.frame(iter(())):
                sink.write(data)
        for views in chunks:
            for sink, view in zip(sinks, views, strict=True):
                sink.write(view)
            tick()
    else:
        _pour_many(sinks, layouts, chunks, tick)
    for sink, layout in zip(sinks, layouts, strict=True):
        if sink.written != layout.size:
            raise AssertionError(f"{sink.written} bytes written, {layout.size} planned")


def _pour_many(
    sinks: Sequence[Sink], layouts: Sequence[Layout], chunks: Chunks, tick: Callable[[], None]
) -> None:
    spouts = [_Spout(sink, layout) for sink, layout in zip(sinks, layouts, strict=True)]
    try:
        for views in chunks:
            for spout, view in zip(spouts, views, strict=True):
                spout.give(view)
            for spout in spouts:
                spout.wait()
            tick()
    finally:
        for spout in spouts:
            spout.close()
    for spout in spouts:
        if spout.error is not None:
            raise spout.error


class _Spout:
    """A thread that writes one output; it holds a buffer only between give and wait."""

    def __init__(self, sink: Sink, layout: Layout) -> None:
        self._chunks: queue.Queue[memoryview | None] = queue.Queue(1)
        self._done = threading.Semaphore(0)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._write, args=(sink, layout), daemon=True)
        self._thread.start()

    def _write(self, sink: Sink, layout: Layout) -> None:
        try:
            for data in layout.frame(self._given()):
                sink.write(data)
        except BaseException as error:
            self.error = error
        finally:
            # Nobody waits for a thread that has ended.
            self._done.release()

    def _given(self) -> Iterator[memoryview]:
        while (view := self._chunks.get()) is not None:
            yield view
            self._done.release()

    def give(self, view: memoryview) -> None:
        if self.error is not None:
            raise self.error
        self._chunks.put(view)

    def wait(self) -> None:
        self._done.acquire()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        while self._thread.is_alive():
            try:
                self._chunks.put(None, timeout=0.1)
                break
            except queue.Full:
                continue
        self._thread.join()
