"""What a worker computes at once: elements of one entry, or of several that are made alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from swavg.dtypes import DType
from swavg.engine.resources import INTEGERS
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.tensors import Tensor
from swavg.planning.entries import Operation
from swavg.planning.plan import Plan, Span, Task
from swavg.storage.pool import Pool
from swavg.storage.sources import Source

_SPARSE = 2
"""Pieces of a file are read at once if they are at least one part in so many of their stretch."""


@dataclass(frozen=True, eq=False, slots=True)
class Manner:
    """How elements are made, apart from which they are: an operation over inputs of certain
    dtypes. Spans of one manner can be computed in one go."""

    operation: Operation
    inputs: tuple[DType, ...]

    @property
    def parts(self) -> int:
        """Real numbers per element: 2 for complex dtypes."""
        return 2 if self.operation.dtype.kind == "complex" else 1


class Piece(NamedTuple):
    """Bytes of a member's source; ``offset`` counts from the base of its table."""

    source: int
    offset: int
    nbytes: int


class BytesRead(NamedTuple):
    """Bytes that were read of a member's source, and their checksum."""

    member: int
    source: int
    offset: int
    nbytes: int
    crc: int


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """Elements to be made in one manner, ``spans`` end to end: ``count`` in all.

    ``tensors`` are the members' where they do not lie in row-major order in one place; then there
    is one span, of ``whole``, which the task makes.
    """

    manner: Manner
    spans: Sequence[Span]
    count: int
    tensors: tuple[Tensor, ...] | None = None
    whole: Span | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the result, for each row."""
        return self.manner.operation.dtype.nbytes(self.count)

    def part(self, start: int, stop: int) -> Batch:
        """Elements ``[start, stop)`` of the batch."""
        spans, at = [], 0
        for span in self.spans:
            size = span.stop - span.start
            low, high = max(start - at, 0), min(stop - at, size)
            if low < high:
                spans.append(Span(span.entry, span.start + low, span.start + high))
            at += size
        return Batch(self.manner, spans, stop - start, self.tensors, self.whole)

    def blocks(self, most: int) -> Iterator[tuple[int, Batch]]:
        """Parts of at most ``most`` elements, each with where it starts."""
        for start in range(0, self.count, most):
            yield start, self.part(start, min(start + most, self.count))

    def locate(self, index: int) -> tuple[int, int]:
        """The entry and its element that is element ``index`` of the batch."""
        for span in self.spans:
            if index < span.stop - span.start:
                return span.entry, span.start + index
            index -= span.stop - span.start
        raise IndexError(index)


@dataclass(eq=False, slots=True)
class Batches:
    """Cuts tasks into batches. ``elements`` is their size, in real numbers; copies have
    ``nbytes``; what holds all inputs at once has less."""

    plan: Plan
    elements: int
    nbytes: int
    _manners: dict[tuple[int, tuple[DType, ...]], Manner] = field(default_factory=dict)
    _known: dict[tuple[int, ...], tuple[Manner, bool]] = field(default_factory=dict)

    def of(self, task: Task) -> Iterator[Batch]:
        """The batches of a task, in the order of the file."""
        pending: list[Span] = []
        count, room, before = 0, 0, None
        for span in self.plan.spans(task):
            manner, apart = self._manner(span.entry)
            most = self._most(manner)
            if pending and (manner is not before or apart):
                yield Batch(manner if before is None else before, pending, count)
                pending, count = [], 0
            if apart:
                yield from self._apart(manner, span, most)
                continue
            before = manner
            start = span.start
            while start < span.stop:
                room = min(most - count, span.stop - start)
                pending.append(Span(span.entry, start, start + room))
                count += room
                start += room
                # Which of several integer tensors differs is to be told.
                if count == most or manner.operation.op == "integer":
                    yield Batch(manner, pending, count)
                    pending, count = [], 0
        if pending and before is not None:
            yield Batch(before, pending, count)

    def _apart(self, manner: Manner, span: Span, most: int) -> Iterator[Batch]:
        entry = self.plan.entries.make(self.plan.checkpoints, span.entry)
        for start in range(span.start, span.stop, most):
            stop = min(start + most, span.stop)
            part = [Span(span.entry, start, stop)]
            yield Batch(manner, part, stop - start, entry.tensors, span)

    def _most(self, manner: Manner) -> int:
        operation = manner.operation
        if operation.op in ("copy", "bytes"):
            return max(8, self.nbytes * 8 // operation.dtype.bits // 8 * 8)
        if operation.op == "integer":
            held = INTEGERS * self.elements // max(2, len(operation.members))
            return max(1024, held * 8 // operation.dtype.bits // 8 * 8)
        return max(1, self.elements // manner.parts)

    def _manner(self, entry: int) -> tuple[Manner, bool]:
        """How an entry is made, and whether a member's elements lie apart."""
        entries = self.plan.entries
        key = entries.key(entry)
        if key not in self._known:
            made = entries.make(self.plan.checkpoints, entry)
            inputs = tuple(tensor.spec.dtype for tensor in made.tensors)
            manner = self._manners.setdefault((key[0], inputs), Manner(made.operation, inputs))
            apart = any(tensor.packed is None for tensor in made.tensors)
            self._known[key] = manner, apart
        return self._known[key]


class Inputs:
    """What a worker reads inputs with: open files, and ``stretch`` bytes for pieces that are read
    at once.

    Elements of inputs that do not lie in rows are gathered for more of the task than a batch, as
    far as ``room`` bytes go, so that reads are long.
    """

    def __init__(self, plan: Plan, stretch: int, room: int) -> None:
        self.plan = plan
        self.pool = Pool()
        self.stretch = memoryview(bytearray(stretch))
        self._room = memoryview(bytearray(room))
        self._held: dict[int, tuple[Span, memoryview]] = {}

    def gathered(self, batch: Batch, index: int) -> memoryview | None:
        """The packed elements of member ``index`` for a batch; None where there is no room."""
        assert batch.tensors is not None
        assert batch.whole is not None
        tensor, (span,) = batch.tensors[index], batch.spans
        dtype = tensor.spec.dtype
        held, elements = self._held.get(index, (Span(-1, 0, 0), memoryview(b"")))
        if span.entry != held.entry or not held.start <= span.start <= span.stop <= held.stop:
            apart = [at for at, each in enumerate(batch.tensors) if not each.in_rows]
            room = len(self._room) // len(apart)
            # Eight elements fill whole bytes, whatever their size.
            stop = min(batch.whole.stop, span.start + room // dtype.bits * 8)
            if stop < span.stop:
                return None
            begin = apart.index(index) * room
            held = Span(span.entry, span.start, stop)
            elements = self._room[begin : begin + dtype.nbytes(stop - span.start)]
            checkpoint = self.plan.checkpoints[batch.manner.operation.members[index]]
            checkpoint.read_unchecked(tensor, held.start, stop, elements, self.pool)
            self._held[index] = held, elements
        start = dtype.nbytes(span.start - held.start)
        return elements[start : start + dtype.nbytes(batch.count)]


class BatchReader:
    """Reads a batch of the members' elements: ``reader(i, buffer)`` fills it with member ``i``'s.

    ``reads`` takes the checksums, which ``checked`` has a function for by member, of what is read
    as it lies in the file.
    """

    def __init__(
        self,
        inputs: Inputs,
        batch: Batch,
        checked: Mapping[int, Callable[[memoryview], int]] | None = None,
        reads: list[BytesRead] | None = None,
    ) -> None:
        self._inputs = inputs
        self._plan = inputs.plan
        self._pool = inputs.pool
        self._batch = batch
        self._checked = {} if checked is None else checked
        self._reads = [] if reads is None else reads
        self._pieces: dict[int, list[Piece]] = {}

    def of(self, batch: Batch) -> BatchReader:
        """What reads another batch: a part of this one."""
        return BatchReader(self._inputs, batch)

    def __call__(self, index: int, out: memoryview) -> None:
        batch, plan = self._batch, self._plan
        member = batch.manner.operation.members[index]
        checkpoint = plan.checkpoints[member]
        if batch.tensors is not None:
            self._read_apart(checkpoint, member, index, out)
            return
        place = plan.entries.table_of[member]
        pieces = self._pieces.get(place)
        if pieces is None:
            # Of each tensor there is a checksum of its own.
            apart = member in self._checked
            pieces = self._pieces[place] = self._of(place, index, apart=apart)
        base = 0 if batch.manner.operation.op == "bytes" else checkpoint.tensors.base
        if len(pieces) == 1 or not self._read_stretch(checkpoint.sources, pieces, base, out):
            done = 0
            for piece in pieces:
                part = out[done : done + piece.nbytes] if len(pieces) > 1 else out
                self._pool.read_into(checkpoint.sources[piece.source], base + piece.offset, part)
                done += piece.nbytes
        self._add_checksums(member, base, pieces, out)

    def _read_apart(self, checkpoint: Checkpoint, member: int, index: int, out: memoryview) -> None:
        assert self._batch.tensors is not None
        (span,), tensor = self._batch.spans, self._batch.tensors[index]
        box = tensor.packed
        if box is not None:
            checkpoint.read_unchecked(tensor, span.start, span.stop, out, self._pool)
            offset = box.offset + span.start * tensor.spec.dtype.bits // 8
            self._add_checksums(member, 0, [Piece(box.source, offset, len(out))], out)
            return
        if not tensor.in_rows and (held := self._inputs.gathered(self._batch, index)) is not None:
            out[:] = held
        else:
            checkpoint.read_unchecked(tensor, span.start, span.stop, out, self._pool)
        if member in self._checked:
            # Of what is not read in its order it is known only that it was read.
            self._reads += [BytesRead(member, box.source, box.offset, 0, 0) for box in tensor.boxes]

    def _add_checksums(
        self, member: int, base: int, pieces: Sequence[Piece], out: memoryview
    ) -> None:
        if (crc_of := self._checked.get(member)) is not None:
            done = 0
            for source, offset, nbytes in pieces:
                crc = crc_of(out[done : done + nbytes])
                self._reads.append(BytesRead(member, source, base + offset, nbytes, crc))
                done += nbytes

    def _read_stretch(
        self, sources: Sequence[Source], pieces: Sequence[Piece], base: int, out: memoryview
    ) -> bool:
        """Read pieces that lie near each other at once; False if they do not."""
        first, last = pieces[0], pieces[-1]
        size = last.offset + last.nbytes - first.offset
        near = first.source == last.source and 0 < size <= min(
            len(self._inputs.stretch), _SPARSE * len(out)
        )
        if not near or any(a.offset + a.nbytes > b.offset for a, b in pairwise(pieces)):
            return False
        stretch = self._inputs.stretch[:size]
        self._pool.read_into(sources[first.source], base + first.offset, stretch)
        done = 0
        for piece in pieces:
            at = piece.offset - first.offset
            out[done : done + piece.nbytes] = stretch[at : at + piece.nbytes]
            done += piece.nbytes
        return True

    def _of(self, place: int, index: int, *, apart: bool) -> list[Piece]:
        """Where the spans lie in the files of this table, as few pieces as can be unless each is to
        be one."""
        entries, columns = self._plan.entries, self._plan.entries.tables[place].columns
        numbers = entries.numbers[place]
        operation = self._batch.manner.operation
        whole = operation.op == "bytes"
        bits = self._batch.manner.inputs[index].bits
        found: list[Piece] = []
        for span in self._batch.spans:
            number = numbers[span.entry]
            offset = (number if whole else columns.offset[number]) + span.start * bits // 8
            source = operation.source if whole else columns.source[number]
            nbytes = (span.stop - span.start) * bits // 8
            last = found[-1] if found else None
            adjacent = last and (last.source, last.offset + last.nbytes) == (source, offset)
            if last and adjacent and not apart:
                found[-1] = Piece(source, last.offset, last.nbytes + nbytes)
            else:
                found.append(Piece(source, offset, nbytes))
        return found


def position_of(index: int, shape: Sequence[int]) -> list[int]:
    """The index per dimension of a row-major element."""
    found = []
    for extent in reversed(shape):
        found.append(index % extent)
        index //= extent
    return found[::-1]
