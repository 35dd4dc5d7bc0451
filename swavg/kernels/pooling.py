"""Variances of a mixture: what batch-norm's running variances of several inputs combine to.

A mixture that draws from input i with probability w_i has the mean ``m = sum w_i m_i`` and, by the
law of total variance, the variance ``sum w_i (v_i + (m_i - m)^2)``: the mean of the variances plus
the variance of the means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from swavg.kernels.base import Arithmetic, ReadChunk
from swavg.kernels.floats import limits, narrow, widen
from swavg.kernels.repair import Trouble

Array = np.ndarray[Any, Any]


def pooled_variance(
    variances: Sequence[Array], means: Sequence[Array], weights: Sequence[float], uniform: bool
) -> Array:
    """The variance of the mixture, in float64, from arrays of one shape per input.

    The weights are not negative and sum to 1; ``uniform`` means that all are equal. Taken around
    the mean, which keeps what ``sum w_i (v_i + m_i^2) - m^2`` loses where means are large; N
    equal inputs return their own variance.
    """
    n = len(means)
    first = means[0].astype(np.float64)
    # Around the first input, so that equal means give no spread at all.
    shift = np.zeros_like(first)
    for mean, weight in zip(means, weights, strict=True):
        shift += (mean - first) * (1.0 if uniform else weight)
    if uniform:
        shift /= n
    total = np.zeros_like(first)
    for variance, mean, weight in zip(variances, means, weights, strict=True):
        spread = variance + ((mean - first) - shift) ** 2
        total += spread if uniform else spread * weight
    return total / n if uniform else total


def pool(arithmetic: Arithmetic, count: int, read: ReadChunk, out: memoryview) -> Trouble | None:
    """Write ``count`` pooled variances to ``out``, rounded once to the output's dtype.

    The inputs of ``arithmetic`` are the variances of all inputs, then their means, with the
    weights twice. Returns the first element without a finite result that is not negative; its
    ``inputs`` are those (counted as sources) that are NaN or Inf there.
    """
    sources = []
    for position, dtype in enumerate(arithmetic.inputs):
        raw = np.empty(dtype.nbytes(count), np.uint8)
        read(position, raw.data)
        wide = np.empty(count)
        widen(raw, dtype, wide)
        sources.append(wide)
    n = len(sources) // 2
    with np.errstate(all="ignore"):
        total = pooled_variance(
            sources[:n], sources[n:], arithmetic.weights[:n], arithmetic.uniform
        )
        total[np.isnan(total)] = np.nan
        narrow(total.copy(), arithmetic.output, np.frombuffer(out, np.uint8))
        wrong = ~((total >= 0) & (total < limits(arithmetic.output)[1]))
    if not wrong.any():
        return None
    index = int(np.argmax(wrong))
    guilty = [
        (position, float(values[index]))
        for position, values in enumerate(sources)
        if not np.isfinite(values[index])
    ]
    return Trouble(index, float(total[index]), guilty)
