"""How far each input lies from the average: estimated from a sample, in the pass that averages.

The sample is the first 8,192 elements of every 2^20 of each averaged tensor (of each run of
adjacent tensors), so it does not depend on chunks or threads, and costs a few per cent of the time.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from swavg.kernels.floats import widen
from swavg.pieces import Piece

SAMPLE = 1 << 13
EVERY = 1 << 20
ELSEWHERE = 0.8
"""Cosine with the average below which an input is taken for one of another run. The average of n
unrelated inputs has a cosine of 1/sqrt(n) with each: 0.71 for two."""
FAR = 4.0
"""Times the median distance at which an input is called far off."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over the sample of one piece; the arrays have an entry per input of the run."""

    distance: Any
    dot: Any
    square: Any
    average: float
    checks: tuple[int, ...]


class Geometry:
    """Collects samples of a run over ``count`` inputs."""

    def __init__(self, count: int) -> None:
        self._distance = np.zeros(count)
        self._dot = np.zeros(count)
        self._square = np.zeros(count)
        self._average = 0.0
        self._checks = [0] * count
        self._count = count
        self._elements = 0

    def sample(
        self, piece: Piece, read: Callable[[int, memoryview], None], out: memoryview
    ) -> Sums | None:
        """Sums over the beginning of a piece of an average over all inputs, else None."""
        task = piece.task
        if piece.start % EVERY or len(task.inputs) != self._count or self._count < 2:
            return None
        if task.dtype.bits < 8:
            return None
        count = min(SAMPLE, piece.count)
        parts = count * task.parts
        average = np.empty(parts)
        widen(np.frombuffer(out, np.uint8)[: task.dtype.nbytes(count)], task.dtype.part, average)
        distance, dot, square = np.zeros((3, self._count))
        checks = []
        values = np.empty(parts)
        with np.errstate(all="ignore"):
            for index, source in enumerate(task.sources):
                dtype = source.spec.dtype
                if dtype.bits < 8 or source.extent.strides is not None:
                    return None
                raw = np.empty(dtype.nbytes(count), np.uint8)
                read(index, raw.data)
                checks.append(zlib.crc32(raw.data))
                widen(raw, dtype.part, values)
                dot[index] = values @ average
                square[index] = values @ values
                np.subtract(values, average, values)
                distance[index] = values @ values
            return Sums(distance, dot, square, float(average @ average), tuple(checks))

    def add(self, sums: Sums) -> None:
        """Add the sums of a piece; called in the order of the pieces."""
        self._distance += sums.distance
        self._dot += sums.dot
        self._square += sums.square
        self._average += sums.average
        self._checks = [
            zlib.crc32(check.to_bytes(4, "little"), before)
            for check, before in zip(sums.checks, self._checks, strict=True)
        ]
        self._elements += 1

    def distances(self) -> tuple[float, ...] | None:
        """||x - average|| / ||average|| per input; None where there is no sample or no length."""
        if not self._elements or not 0 < self._average < math.inf:
            return None
        return tuple(np.sqrt(self._distance / self._average).tolist())

    def cosines(self) -> tuple[float, ...] | None:
        """The cosine of the angle between each input and the average."""
        if self.distances() is None:
            return None
        with np.errstate(all="ignore"):
            found = self._dot / np.sqrt(self._square * self._average)
        return tuple(np.nan_to_num(found, nan=0.0).tolist())

    def warnings(self, names: Sequence[str]) -> tuple[str, ...]:
        """What looks wrong with an input, in words."""
        distances, cosines = self.distances(), self.cosines()
        if distances is None or cosines is None:
            return ()
        said = []
        first: dict[int, str] = {}
        for check, name in zip(self._checks, names, strict=True):
            if check in first and name != first[check]:
                said.append(f"{name} looks identical to {first[check]}")
            first.setdefault(check, name)
        apart = [i for i, cosine in enumerate(cosines) if cosine < ELSEWHERE]
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
        middle = _median(distances)
        for index, distance in enumerate(distances):
            if len(names) > 2 and index not in apart and distance > FAR * middle > 0:
                said.append(
                    f"{names[index]} is far off: {distance:.2g} of the average's length,"
                    f" {distance / middle:.1f} times the median"
                )
        return tuple(said)


def _median(values: Sequence[float]) -> float:
    # NumPy's would import its masked arrays, at a tenth of the time that an average of small
    # files takes.
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
