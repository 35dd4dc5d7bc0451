"""Outputs that are there, compared with what would be written."""

from __future__ import annotations

import math
import os
from bisect import bisect_right

from swavg.errors import InputError, MismatchError
from swavg.planning.plan import Output, Plan
from swavg.storage.fingerprints import same_bytes
from swavg.storage.paths import find_file, is_file
from swavg.storage.pool import Pool
from swavg.storage.sinks import Buffer
from swavg.storage.sources import Source

_CARD = "README.md"
"""A page for people, who write into it: it is not compared."""


def compare_others(output: Output, path: str) -> None:
    """MismatchError if a file beside the weights is another than would be written."""
    with Pool() as pool:
        for name in {**output.side_files, **output.small}:
            place = os.path.join(path, name)
            if name == _CARD:
                continue
            if not is_file(place):
                raise MismatchError(f"{place} is missing, and goes along with the weights.")
            data = output.small.get(name)
            file = find_file(place)
            if data is None:
                source = output.side_files[name]
                if not same_bytes(pool, [file], [find_file(source)]):
                    raise MismatchError(f"{place} is not that of the last input, {source}.")
            elif file.size != len(data) or pool.read(file, 0, file.size) != data:
                raise MismatchError(f"{place} is not what its recipe says.")


class ComparingSink:
    """A file of an output that is there: what would be written is compared."""

    forks = True
    fds = ()

    def __init__(self, plan: Plan, row: int, number: int, path: str) -> None:
        self._plan, self._row, self._number, self._path = plan, row, number, path
        layout = plan.outputs[row].files[number].layout
        place = os.path.join(path, layout.name) if layout.name else path
        try:
            self._source: Source = find_file(place)
        except InputError:
            problem = "is laid out otherwise than its recipe says; was it converted?"
            raise InputError(path, problem) from None
        if self._source.size != layout.size:
            raise MismatchError(
                f"{place} is not what its recipe says: it has {self._source.size:,} bytes, and"
                f" {layout.size:,} were to be there."
            )
        self._pool = Pool()

    def pwrite(self, offset: int, data: Buffer) -> None:
        """MismatchError if other bytes are there."""
        there = self._pool.read(self._source, offset, len(data))
        if there == data:
            return
        first = next(at for at, byte in enumerate(data) if there[at] != byte)
        where, at = self._named(offset + first)
        raise MismatchError(
            f"{self._source.name}: {where} is not what its recipe says: byte {at:,} of it is"
            f" {there[first]}, and {data[first]} was to be there."
        )

    def _named(self, offset: int) -> tuple[str, int]:
        """What lies at an offset of the file, in words, and which byte of it."""
        file = self._plan.outputs[self._row].files[self._number]
        region = bisect_right(file.offsets, offset) - 1
        tensor = file.tensors[region] if region >= 0 else -1
        if tensor >= 0:
            name, dtype, shape = file.layout.specs.at(tensor)
            start, stop = map(dtype.nbytes, file.parts.get(region, (0, math.prod(shape))))
            at = start + offset - file.offsets[region]
            if at < stop:
                return f"'{name}'", at
        return "what is no tensor", offset

    def sync(self) -> None:
        """Nothing is written."""

    def fail(self, error: BaseException) -> None:
        """Nobody waits."""
