"""What a kernel computes: a weighted sum of chunks, in one order, rounded once.

The arithmetic is fixed to the bit, so that every kernel gives the same answer:
each input is converted to the accumulator (exactly, unless a narrower one was asked for),
multiplied by its weight rounded to the accumulator, and added, in input order, without fused
multiply-add. Uniform weights add first and divide once. The sum is rounded once to the output
dtype, to nearest, ties to even.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from swavg.dtypes import Accumulator, DType

ReadChunk = Callable[[int, memoryview], None]
"""Fill the buffer with the chunk of input ``i``."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """One weighted sum: real dtypes of the inputs, their weights, accumulator, output dtype."""

    inputs: tuple[DType, ...]
    weights: tuple[float, ...]
    uniform: bool
    accumulator: Accumulator
    output: DType


class Kernel(Protocol):
    """Computes chunks; one object per worker thread, with buffers of its own."""

    def weighted_sum(
        self, arithmetic: Arithmetic, count: int, read: ReadChunk, out: memoryview
    ) -> bool:
        """Write ``count`` elements of the sum to ``out``; False if any is not a finite number of
        the output dtype (then ``out`` is not to be used as it is)."""
        ...

    def close(self) -> None:
        """Give the buffers back."""
        ...
