"""A plan: everything decided and nothing written, as columns that processes share.

A task is a stretch of an output file, found by arithmetic: nothing is made for each in advance,
and looking at one touches no object of the plan but the few that it needs.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from swavg.formats.checkpoint import Checkpoint
from swavg.formats.layout import FileLayout
from swavg.planning.composite import Parts
from swavg.planning.decide import NotAveraged
from swavg.planning.entries import Entries
from swavg.planning.policy import Policy
from swavg.planning.row import Row
from swavg.planning.targets import Target
from swavg.short_repr import ShortRepr
from swavg.storage.paths import in_store
from swavg.storage.sources import Source

CUT = 2 << 20
"""Bytes of the output that a task covers."""
GATHERED_CUT = 4 << 20
"""The same where some inputs do not lie in row-major order: more is read at once."""
DEVICE_CUT = 16 << 20
"""The same where a device computes."""
_LEAST, _MOST = 1 << 20, 64 << 20
"""The same where several machines do."""


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class File(ShortRepr):
    """A file of an output: its layout, and its regions by offset: which entry lies there, and
    which of the layout's tensors that is (-1: bytes of the template).

    ``parts`` has the elements ``[start, stop)`` of its entry that a region holds, by number of the
    region, where they are not all (the rows that a rank has of a tensor, or that a format has in
    one place)."""

    layout: FileLayout
    offsets: array[int]
    entries: array[int]
    tensors: array[int]
    parts: Mapping[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class Output(ShortRepr):
    """One output: its files; ``small`` ones made beforehand (an index) and ``side_files`` to
    copy, by name. ``home[e]`` is the first region of entry ``e``, counted through all files (-1: it
    is not in this output)."""

    target: Target
    files: tuple[File, ...]
    small: dict[str, bytes]
    side_files: dict[str, str]
    home: array[int]
    starts: tuple[int, ...]
    """The number of each file's first region."""
    ties: tuple[tuple[str, ...], ...]
    not_averaged: tuple[NotAveraged, ...]
    notes: tuple[str, ...]
    counts: Mapping[str, int]
    """How many tensors were averaged, integer, copied, dropped, excluded."""
    elements: int
    running_statistics: tuple[str, ...]
    """Batch-norm buffers that are averaged like weights."""
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files, side files excepted."""
        return sum(file.layout.size for file in self.files) + sum(map(len, self.small.values()))

    def place(self, entry: int, element: int) -> Place:
        """Where an element of an entry lies."""
        region = self.home[entry]
        number = bisect_right(self.starts, region) - 1
        file, region = self.files[number], region - self.starts[number]
        start, stop = 0, None
        while region in file.parts:
            start, stop = file.parts[region]
            if element < stop:
                break
            region += 1
            if region == len(file.offsets):
                number, region = number + 1, 0
                file = self.files[number]
        return Place(number, file.offsets[region], start, stop)


class Place(NamedTuple):
    """A region: the number of its file, its offset there, and the elements ``[start, stop)`` of its
    entry that it holds (None: to the end)."""

    file: int
    offset: int
    start: int
    stop: int | None


class Span(NamedTuple):
    """Elements ``[start, stop)`` of an entry."""

    entry: int
    start: int
    stop: int


class Task(NamedTuple):
    """A stretch of ``row``'s file ``file``: from an element of the first region to one of the
    last (``last`` is included, ``stop`` is not)."""

    number: int
    row: int
    file: int
    first: int
    start: int
    last: int
    stop: int


@dataclass(frozen=True, eq=False, repr=False)
class Plan(ShortRepr):
    """Everything decided and nothing written: a picklable value.

    ``shown`` are names of the checkpoints for people. Output ``r`` is made by ``rows[r]`` and
    described by ``recipes[r]``. An entry that several rows share is made with the first of them.
    ``distances``: how far each input lies from the average is estimated on the way.
    """

    checkpoints: tuple[Checkpoint, ...]
    shown: tuple[str, ...]
    rows: tuple[Row, ...]
    policy: Policy
    entries: Entries
    outputs: tuple[Output, ...]
    recipes: tuple[dict[str, object], ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    """What may make the result useless."""
    distances: bool = False
    folder: str | None = None
    """A folder to be made for the outputs, which appears with all of them."""
    cut: int = CUT
    differing: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Names of integers that differ, by row, of tensors that were computed with the plan."""
    nonfinite: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """The same of values that are not finite."""
    parts: Parts | None = None
    """Of inputs that are composites: each output then has a row for each part."""

    def facts(self) -> Mapping[str, object]:
        return {
            "inputs": self.shown,
            "outputs": [output.target.path or "standard output" for output in self.outputs],
            "tensors": len(self.entries),
            "bytes": sum(output.size for output in self.outputs),
            "notes": self.notes,
            "warnings": self.warnings,
        }

    @property
    def sources(self) -> Iterator[Source]:
        """Where the bytes of all inputs come from."""
        return (source for checkpoint in self.checkpoints for source in checkpoint.sources)

    @cached_property
    def remote(self) -> bool:
        """Whether some inputs are in a store, so that a read is a request."""
        return any(map(in_store, self.sources))

    @property
    def width(self) -> int:
        """How many rows make an output."""
        return 1 if self.parts is None else self.parts.count

    def for_machines(self, tasks: int) -> Plan:
        """The plan in about so many tasks that several machines may do: on network file systems no
        two may write into one page, of which 1 MiB is a multiple."""
        size = sum(output.size for output in self.outputs) // tasks
        # What a task reads of objects in a store is in memory at once.
        far = any(not source.forks for source in self.sources)
        most = self.cut if far else _MOST
        return replace(self, cut=max(_LEAST, min(most, size // _LEAST * _LEAST)))

    @cached_property
    def stretches(self) -> list[tuple[int, int, int, int]]:
        """First task, row, file and size of each file that has something to make."""
        found, first = [], 0
        for row, output in enumerate(self.outputs):
            for number, file in enumerate(output.files):
                if row == 0 or any(self.leads(row, entry) for entry in file.entries):
                    found.append((first, row, number, file.layout.size))
                    first += -(-file.layout.size // self.cut)
        return found

    def tasks(self) -> range:
        """The numbers of all tasks."""
        first, _, _, size = self.stretches[-1]
        return range(first + -(-size // self.cut))

    def leads(self, row: int, entry: int) -> bool:
        """Whether this row is the first of those that share an entry."""
        return self.entries.operations[self.entries.operation[entry]].terms[0].row == row

    def task(self, number: int) -> Task:
        """The task of this number."""
        stretches = self.stretches
        first, row, index, size = stretches[bisect_right(stretches, number, key=_first) - 1]
        file = self.outputs[row].files[index]
        low = (number - first) * self.cut
        high = min(low + self.cut, size)
        # An element belongs to the task that its first byte lies in.
        begin = max(0, bisect_right(file.offsets, low) - 1)
        end = bisect_left(file.offsets, high)
        if begin >= end:
            return Task(number, row, index, 0, 0, -1, 0)
        start = self._elements(file, begin, low)
        return Task(number, row, index, begin, start, end - 1, self._elements(file, end - 1, high))

    def _elements(self, file: File, region: int, position: int) -> int:
        """The element of its entry that begins at this byte of the file or behind it, within the
        region or at its end."""
        entry = file.entries[region]
        bits = self.entries.operations[self.entries.operation[entry]].dtype.bits
        # Eight elements that are narrower than a byte fill whole bytes.
        unit = 1 if bits >= 8 else 8
        units = -(-max(0, position - file.offsets[region]) // (bits * unit // 8))
        start, stop = self._extent(file, region)
        return min(start + units * unit, stop)

    def _extent(self, file: File, region: int) -> tuple[int, int]:
        """The elements of its entry that a region holds."""
        if region in file.parts:
            return file.parts[region]
        return 0, math.prod(self.entries.forms[self.entries.form[file.entries[region]]][0])

    def spans(self, task: Task) -> Iterator[Span]:
        """What a task makes, in the order of the file."""
        file = self.outputs[task.row].files[task.file]
        for region in range(task.first, task.last + 1):
            entry = file.entries[region]
            if not self.leads(task.row, entry):
                continue
            start, stop = self._extent(file, region)
            if region == task.first:
                start = task.start
            if region == task.last:
                stop = task.stop
            if stop > start:
                yield Span(entry, start, stop)

    def name(self, row: int, entry: int) -> str:
        """The name of an entry in a row's output; empty for bytes of the template."""
        output = self.outputs[row]
        region = output.home[entry]
        index = bisect_right(output.starts, region) - 1
        file = output.files[index]
        tensor = file.tensors[region - output.starts[index]]
        return file.layout.specs.names[tensor] if tensor >= 0 else ""


def _first(stretch: tuple[int, int, int, int]) -> int:
    return stretch[0]
