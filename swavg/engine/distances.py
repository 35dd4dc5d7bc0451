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
from swavg.planning.plan import Plan

SAMPLE = 1 << 13
EVERY = 1 << 20
ELSEWHERE = 0.8
"""Cosine with the average below which an input is taken for one of another run. The average of n
unrelated inputs has a cosine of 1/sqrt(n) with each: 0.71 for two."""
FAR = 4.0
"""Times the median distance at which an input is called far off."""
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
    """Where each entry begins among the averaged elements of the first row; -1 for those that are
    not averaged over all of its inputs."""
    entries, members = plan.entries, plan.rows[0].members
    taken = [
        operation.op == "average" and operation.members == members and len(members) > 1
        for operation in entries.operations
    ]
    sizes = [math.prod(shape) for shape, _ in entries.forms]
    found, position = array("q", [-1]) * len(entries), 0
    for file in plan.outputs[0].files:
        for entry in file.entries:
            if taken[entries.operation[entry]]:
                found[entry] = position
                position += sizes[entries.form[entry]]
    return found


def sampled(
    batch: Batch, positions: Sequence[int], read: BatchReader, out: memoryview
) -> Iterator[Sums]:
    """Sums over the parts of a batch that are in the sample; ``out`` is its average."""
    first = batch.spans[0]
    low = positions[first.entry] + first.start
    if positions[first.entry] < 0:
        return
    size = batch.manner.operation.dtype.itemsize
    # What is made in one manner is adjacent.
    for window in range(low // EVERY * EVERY, low + batch.count, EVERY):
        start, stop = max(low, window), min(low + batch.count, window + SAMPLE)
        if start < stop:
            part = batch.part(start - low, stop - low)
            yield _sums(part, read.of(part), out[(start - low) * size : (stop - low) * size], start)


@np.errstate(all="ignore")
def _sums(batch: Batch, read: BatchReader, out: memoryview, position: int) -> Sums:
    dtype, parts = batch.manner.operation.dtype, batch.count * batch.manner.parts
    average, values = np.empty(parts), np.empty(parts)
    widen(np.frombuffer(out, np.uint8), dtype.part, average)
    places = np.arange(position, position + batch.count, dtype=np.uint64)
    distance, dot, square, bits = [], [], [], []
    for index, source in enumerate(batch.manner.inputs):
        raw = np.empty(source.nbytes(batch.count), np.uint8)
        read(index, raw.data)
        bits.append(_mixed(raw, places))
        widen(raw, source.part, values)
        dot.append(float(values @ average))
        square.append(float(values @ values))
        np.subtract(values, average, values)
        distance.append(float(values @ values))
    return Sums(tuple(distance), tuple(dot), tuple(square), float(average @ average), tuple(bits))


def _mixed(raw: npt.NDArray[np.uint8], places: npt.NDArray[np.uint64]) -> int:
    """A number for the bytes at these places, whose sum does not depend on how they are cut."""
    each = raw.reshape(places.size, -1).astype(np.uint64)
    factors = np.uint64(0x9E3779B97F4A7C15) ** np.arange(1, each.shape[1] + 1, dtype=np.uint64)
    words = (each * factors).sum(axis=1, dtype=np.uint64)
    return int(((words + np.uint64(1)) * (2 * places + np.uint64(1))).sum(dtype=np.uint64))


@dataclass(slots=True)
class Distances:
    """Collects the sums of a run over ``count`` inputs, in any order."""

    count: int
    _sums: list[Sums] = field(default_factory=list)

    def add(self, sums: Sequence[Sums]) -> None:
        self._sums += sums

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

    def warnings(self, names: Sequence[str]) -> tuple[str, ...]:
        """What looks wrong with an input, in words."""
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
        apart = [index for index, cosine in enumerate(cosines) if cosine < ELSEWHERE]
        if len(apart) > 1 and len(apart) == len(names):
            said.append(
                "the inputs hardly point the same way"
                f" (cosines with the average down to {min(cosines):.2f}): are they of one run?"
            )
            return tuple(said)
        for index in apart:
            said.append(
                f"{names[index]} points elsewhere (cosine {cosines[index]:.2f} with the average):"
                " is it of another run?"
            )
        ordered = sorted(distances)
        half = len(ordered) // 2
        middle = ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
        for index, distance in enumerate(distances):
            if len(names) > 2 and index not in apart and distance > FAR * middle > 0:
                said.append(
                    f"{names[index]} is far off: {distance:.2g} of the average's length,"
                    f" {distance / middle:.1f} times the median"
                )
        return tuple(said)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
