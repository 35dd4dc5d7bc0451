"""Mean, deviation and range of tensors, streamed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from swavg.analysis.chunks import Bytes, OnProgress, check, in_order, ranges, read_chunk, wide
from swavg.analysis.figures import Statistics
from swavg.dtypes import DType
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.tensors import Tensor
from swavg.storage.pool import Pool


@dataclass(frozen=True, slots=True)
class _Moments:
    """Figures of ``count`` finite values, and how many others there were."""

    count: int = 0
    mean: float = 0.0
    std: float = 0.0
    low: float | int = 0
    high: float | int = 0
    nans: int = 0
    infs: int = 0

    def plus(self, other: _Moments) -> _Moments:
        """Of both together: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm
        for computing sample variances" (1979), with roots, which neither overflow nor vanish."""
        nans, infs = self.nans + other.nans, self.infs + other.infs
        if not self.count or not other.count:
            return replace(self if self.count else other, nans=nans, infs=infs)
        count = self.count + other.count
        low, high = min(self.low, other.low), max(self.high, other.high)
        if low == high:
            return _Moments(count, self.mean, 0.0, low, high, nans, infs)
        share = other.count / count
        mean = self.mean + (other.mean * share - self.mean * share)
        apart = math.sqrt(share * (self.count / count))
        std = math.hypot(
            self.std * math.sqrt(self.count / count),
            other.std * math.sqrt(share),
            self.mean * apart - other.mean * apart,
        )
        return _Moments(count, mean, std, low, high, nans, infs)

    def statistics(self) -> Statistics:
        if not self.count:
            return Statistics(None, None, None, None, self.nans, self.infs)
        # Not a number: sums left the range of float64.
        mean, std = (None if math.isnan(x) else x for x in (self.mean, self.std))
        return Statistics(mean, std, self.low, self.high, self.nans, self.infs)


def _moments(raw: Bytes, dtype: DType) -> _Moments:
    with np.errstate(all="ignore"):
        values = wide(raw, dtype)
        if dtype.kind == "complex":
            values = np.hypot(values[0::2], values[1::2])
        nans = infs = 0
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = np.isfinite(values)
            nans = int(np.count_nonzero(np.isnan(values)))
            values = values[finite]
            infs = int(finite.size - values.size - nans)
            if not values.size:
                return _Moments(nans=nans, infs=infs)
            low, high = float(values.min()), float(values.max())
        count = int(values.size)
        ends: tuple[float | int, float | int] = low, high
        if dtype.kind in ("integer", "bool"):
            native = raw != 0 if dtype.kind == "bool" else raw.view(dtype.numpy())
            ends = int(native.min()), int(native.max())
        if low == high:
            return _Moments(count, low, 0.0, *ends, nans, infs)
        mean = float(values.sum()) / count
        values -= mean
        np.multiply(values, values, out=values)
        std = math.sqrt(float(values.sum()) / count)
    return _Moments(count, mean, std, *ends, nans, infs)


def statistics_of(
    checkpoint: Checkpoint, tensors: Mapping[str, Tensor], on_progress: OnProgress | None
) -> dict[str, Statistics]:
    """Figures of each tensor, by the names of ``tensors``. Raises InputError."""

    def pieces() -> Iterator[tuple[str, int, int]]:
        for name, tensor in tensors.items():
            for start, stop in ranges(tensor):
                yield name, start, stop

    def work(piece: tuple[str, int, int]) -> _Moments:
        name, start, stop = piece
        tensor = tensors[name]
        return _moments(read_chunk(pool, checkpoint, tensor, start, stop), tensor.spec.dtype)

    sums = dict.fromkeys(tensors, _Moments())
    read, whole = 0, sum(tensor.spec.nbytes for tensor in tensors.values())
    with Pool() as pool:
        for (name, start, stop), moments in in_order(pieces(), work):
            sums[name] = sums[name].plus(moments)
            read += tensors[name].spec.dtype.nbytes(stop - start)
            if on_progress is not None:
                on_progress(read, whole)
    check(checkpoint)
    return {name: moments.statistics() for name, moments in sums.items()}
