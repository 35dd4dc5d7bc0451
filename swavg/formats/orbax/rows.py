"""Rows of chunks that were decoded, kept on disk: what is read next mostly lies in the same one.

So the memory for one row is enough for any number of inputs.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import IO

from swavg.formats.tensors import Shape

_ROWS = 2
"""Rows that are kept of an item: whoever reads across the end of one goes back to it."""

_MMAP_THRESHOLD = -3
"""What malloc.h calls it."""
_LARGE = 1 << 20

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Grid:
    """The rows of chunks of an array, in bytes: each has ``row``, the last before each multiple of
    ``turn`` what is left."""

    row: int
    turn: int

    @classmethod
    def of(cls, shape: Shape, chunk: Shape, itemsize: int) -> Grid:
        """That of row-major elements. Along the axes before the first that chunks have a length in
        each element is a row of its own."""
        axis = next((axis for axis, size in enumerate(chunk) if size > 1), len(chunk))
        turn = math.prod(shape[axis:]) * itemsize
        inner = math.prod(shape[axis + 1 :]) * itemsize
        return cls(min(turn, chunk[axis] * inner) if axis < len(chunk) else turn, turn)

    def row_at(self, offset: int) -> Range:
        """The bytes of the row that holds this one."""
        first = offset // self.turn * self.turn
        start = first + (offset - first) // self.row * self.row
        return start, min(start + self.row, first + self.turn)


class Rows:
    """The last rows that were decoded of the arrays of an item, in temporary files without a name;
    in memory where there is no room for them. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, int], IO[bytes] | memoryview] = {}

    def read_into(
        self, array: str, row: Range, offset: int, out: memoryview,
        decode: Callable[[Range], Iterable[memoryview]],
    ) -> None:  # fmt: skip
        """Fill ``out`` with the bytes at ``offset`` of an array, which lie in this row of it."""
        key, at = (array, row[0]), offset - row[0]
        with self._lock:
            kept = self._kept.pop(key, None)
            if kept is None:
                self._trim(_ROWS - 1)
                _keep_large_apart()
                kept = _stored(partial(decode, row))
            self._kept[key] = kept
            if isinstance(kept, memoryview):
                out[:] = kept[at : at + len(out)]
            else:
                _read(kept.fileno(), at, out)

    def _trim(self, count: int) -> None:
        while len(self._kept) > count:
            oldest = self._kept.pop(next(iter(self._kept)))
            if not isinstance(oldest, memoryview):
                oldest.close()

    def __del__(self) -> None:
        self._trim(0)


def _stored(decode: Callable[[], Iterable[memoryview]]) -> IO[bytes] | memoryview:
    """A file of these bytes; themselves where there is no room for one."""
    with suppress(OSError):
        file = tempfile.TemporaryFile(prefix="swavg-", buffering=0)  # noqa: SIM115
        try:
            for data in decode():
                while data:
                    data = data[os.write(file.fileno(), data) :]
            return file
        except BaseException:
            file.close()
            raise
    return memoryview(b"".join(decode()))


@cache
def _keep_large_apart() -> None:
    """Have the C library map large buffers, which then grow in their place while a row is decoded,
    and go back to the system: in the heap that takes twice the memory."""
    if sys.platform == "linux":
        import ctypes

        # Only that of GNU has it.
        with suppress(AttributeError):
            ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)


def _read(fd: int, offset: int, out: memoryview) -> None:
    done = 0
    while done < len(out):
        count = os.preadv(fd, [out[done:]], offset + done)
        if not count:
            raise OSError("a temporary file was cut short")
        done += count
