"""How far each input lies from the average: estimated from a sample, in the pass that averages.

The sample are the first 8,192 of every 2^20 elements of the averaged tensors, counted end to end
in the order of the output: it depends on neither chunks nor workers, and costs a few per cent of
the time.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from swavg.engine.batches import Batch, BatchReader
from swavg.engine.kernels.floats import widen
from swavg.errors import some
from swavg.planning.entries import Term
from swavg.planning.plan import Plan

SAMPLE = 1 << 13
EVERY = 1 << 20
ELSEWHERE = 0.8
"""Cosine with the average below which an input is taken for one of another run. The average of n
unrelated inputs has a cosine of 1/sqrt(n) with each: 0.71 for two."""
FAR = 4.0
"""Times the median distance at which an input is called far off."""
SLIGHT = 0.1
"""Share of the mean weight below which it does not matter where an input lies."""
_NAMED = 3
_DIGITS = 9
"""Significant digits that do not depend on the order of the sums."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over a part of the sample: of the squares of input - average, of input x average and of
    the input's squares, one each per input; of the average's squares; and of each input's bits,
    mixed with their places."""

    distance: tuple[float, ...]
    dot: tuple[float, ...]
    square: tuple[float, ...]
    average: float
    bits: tuple[int, ...]


def positions_of(plan: Plan) -> array[int]:
    """Where each entry begins among the averaged elements of the first row that has it; -1 for
    those that are not averaged."""
    entries = plan.entries
    averaged = [
        operation.op == "average" and len(operation.members) > 1 for operation in entries.operations
    ]
    sizes = [math.prod(shape) for shape, _ in entries.forms]
    found = array("q", [-1]) * len(entries)
    for row, output in enumerate(plan.outputs):
        position = 0
        for file in output.files:
            for entry in file.entries:
                if averaged[entries.operation[entry]] and plan.leads(row, entry):
                    found[entry] = position
                    position += sizes[entries.form[entry]]
    return found


class Sampler:
    """Takes the sums of batches, in buffers of its own: one for each worker."""

    def __init__(self, plan: Plan, positions: Sequence[int]) -> None:
        self._members = [len(row.members) for row in plan.rows]
        self._positions = positions
        # Two numbers per element of a complex dtype.
        self._averages = np.empty((len(plan.rows), 2 * SAMPLE))
        self._values, self._differences = np.empty((2, 2 * SAMPLE))
        self._raw = np.empty(16 * SAMPLE, np.uint8)

    def sample(
        self, batch: Batch, read: BatchReader, outs: Sequence[memoryview]
    ) -> Iterator[tuple[int, Sums]]:
        """By row the sums over the parts of a batch that are in the sample; ``outs`` are its
        averages, one per term. Only of rows that average all their members here."""
        first = batch.spans[0]
        low = self._positions[first.entry] + first.start
        terms = [
            (term, out)
            for term, out in zip(batch.manner.operation.terms, outs, strict=True)
            if len(term.positions) == self._members[term.row]
        ]
        if self._positions[first.entry] < 0 or not terms:
            return
        size = batch.manner.operation.dtype.itemsize
        # What is made in one manner is adjacent.
        for window in range(low // EVERY * EVERY, low + batch.count, EVERY):
            start, stop = max(low, window), min(low + batch.count, window + SAMPLE)
            if start < stop:
                part = batch.part(start - low, stop - low)
                made = slice((start - low) * size, (stop - low) * size)
                parts = [(term, out[made]) for term, out in terms]
                yield from self._sums(part, read.of(part), parts, start)

    @np.errstate(all="ignore")
    def _sums(
        self,
        batch: Batch,
        read: BatchReader,
        terms: Sequence[tuple[Term, memoryview]],
        position: int,
    ) -> list[tuple[int, Sums]]:
        parts = batch.count * batch.manner.parts
        values, difference = self._values[:parts], self._differences[:parts]
        raws: list[list[tuple[float, float, float, int]]] = [[] for _ in terms]
        for (_, out), average in zip(terms, self._averages, strict=False):
            widen(np.frombuffer(out, np.uint8), batch.manner.operation.dtype.part, average[:parts])
        for index, source in enumerate(batch.manner.inputs):
            raw = self._raw[: source.nbytes(batch.count)]
            read(index, raw.data)
            bits = _mixed(raw, parts, position)
            widen(raw, source.part, values)
            square = float(values @ values)
            for (term, _), average, found in zip(terms, self._averages, raws, strict=False):
                if index in term.positions:
                    np.subtract(values, average[:parts], difference)
                    dot = float(values @ average[:parts])
                    found.append((float(difference @ difference), dot, square, bits))
        sums = []
        for (term, _), average, found in zip(terms, self._averages, raws, strict=False):
            distance, dots, squares, mixed = zip(*found, strict=True)
            own = float(average[:parts] @ average[:parts])
            sums.append((term.row, Sums(distance, dots, squares, own, mixed)))
        return sums


def _mixed(raw: npt.NDArray[np.uint8], count: int, position: int) -> int:
    """A number for the bits of ``count`` numbers at these places, whose sum does not depend on how
    they are cut."""
    words = raw.view(f"u{raw.size // count}").astype(np.uint64)
    places = np.arange(position, position + count, dtype=np.uint64)
    return int(words @ (places * _ODD + _ODD))


_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(slots=True)
class Distances:
    """Collects the sums of a run over ``count`` inputs, in any order."""

    count: int
    _sums: list[Sums] = field(default_factory=list)

    def add(self, sums: Sums) -> None:
        self._sums.append(sums)

    def _total(self, name: str, index: int) -> float:
        return math.fsum(getattr(sums, name)[index] for sums in self._sums)

    def distances(self) -> tuple[float, ...] | None:
        """||x - average|| / ||average|| per input; None where there is no sample or no length."""
        average = self._average()
        if average is None:
            return None
        return tuple(
            _rounded(math.sqrt(self._total("distance", index) / average))
            for index in range(self.count)
        )

    def cosines(self) -> tuple[float, ...] | None:
        """The cosine of the angle between each input and the average."""
        average = self._average()
        if average is None:
            return None
        found = []
        for index in range(self.count):
            square = self._total("square", index) * average
            cosine = self._total("dot", index) / math.sqrt(square) if square > 0 else 0.0
            found.append(_rounded(cosine))
        return tuple(found)

    def _average(self) -> float | None:
        numbers = [
            value
            for sums in self._sums
            for value in (sums.average, *sums.distance, *sums.dot, *sums.square)
        ]
        if not all(map(math.isfinite, numbers)):
            return None
        total = math.fsum(sums.average for sums in self._sums)
        return total if total > 0 else None

    def warnings(self, names: Sequence[str], weights: Sequence[float]) -> tuple[str, ...]:
        """What looks wrong with an input, in words; an input of next to no weight does no harm."""
        distances, cosines = self.distances(), self.cosines()
        if distances is None or cosines is None:
            return ()
        said = []
        first: dict[int, str] = {}
        for index, name in enumerate(names):
            bits = sum(sums.bits[index] for sums in self._sums) % 2**64
            if bits in first and name != first[bits]:
                said.append(f"{name} looks identical to {first[bits]}")
            first.setdefault(bits, name)
        mean = math.fsum(map(abs, weights)) / len(weights)
        counts = [abs(weight) >= SLIGHT * mean for weight in weights]
        apart = [index for index, cosine in enumerate(cosines) if cosine < ELSEWHERE]
        said += _elsewhere(names, cosines, apart, counts)
        if len(apart) > 1 and len(apart) == len(names):
            return tuple(said)
        ordered = sorted(distances)
        half = len(ordered) // 2
        middle = ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
        for index, distance in enumerate(distances):
            far = len(names) > 2 and index not in apart and distance > FAR * middle > 0
            if far and counts[index]:
                said.append(
                    f"{names[index]} is far off: {distance:.2g} of the average's length,"
                    f" {distance / middle:.1f} times the median"
                )
        return tuple(said)


def _elsewhere(
    names: Sequence[str], cosines: Sequence[float], apart: Sequence[int], counts: Sequence[bool]
) -> list[str]:
    """What is said of the inputs that lie ``apart``, as far as they count."""
    if len(apart) > 1 and len(apart) == len(names):
        return [
            "the inputs hardly point the same way"
            f" (cosines with the average down to {min(cosines):.2f}): are they of one run?"
        ]
    doubtful = [index for index in apart if counts[index]]
    if len(doubtful) > _NAMED:
        lowest, highest = (end(cosines[index] for index in doubtful) for end in (min, max))
        return [
            f"{len(doubtful)} inputs point elsewhere: {some([names[i] for i in doubtful], 2)}"
            f" (cosines {lowest:.2f} to {highest:.2f} with the average): are they of another run,"
            " or of its beginning?"
        ]
    return [
        f"{names[index]} points elsewhere (cosine {cosines[index]:.2f} with the average):"
        " is it of another run?"
        for index in doubtful
    ]


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
