"""What a kernel computes: weighted sums of chunks, in one order, rounded once.

The arithmetic is fixed to the bit, so that every kernel gives the same answer:
each input is converted to the accumulator (exactly, unless a narrower one was asked for),
multiplied by its weight rounded to the accumulator, and added, in input order, without fused
multiply-add. Uniform weights add first and divide once. The sum is rounded once to the output
dtype, to nearest, ties to even.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from swavg.dtypes import Accumulator, DType

ReadChunk = Callable[[int, memoryview], None]
"""Fill the buffer with the chunk of input ``i``."""


@dataclass(frozen=True, slots=True)
class Terms:
    """One row of a sum: which inputs it takes, and with which weights."""

    positions: tuple[int, ...]
    """Of the inputs that are read, ascending."""
    weights: tuple[float, ...]
    """One per position; not looked at if ``uniform``."""
    uniform: bool
    """The mean: add, then divide by their number."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Weighted sums over one read of the inputs. Kernels know one again by its identity."""

    inputs: tuple[DType, ...]
    """Real dtypes (``DType.part``) of 8 bits and more, of all inputs that are read, in order."""
    rows: tuple[Terms, ...]
    accumulator: Accumulator
    output: DType
    """The real dtype of all rows."""


class Use(NamedTuple):
    """A row that takes an input: ``weight`` is None if it is uniform; ``first`` starts its sum."""

    row: int
    weight: float | None
    first: bool


def uses(arithmetic: Arithmetic) -> list[list[Use]]:
    """The rows that take each input, in the order of the inputs."""
    found: list[list[Use]] = [[] for _ in arithmetic.inputs]
    for row, terms in enumerate(arithmetic.rows):
        for number, (position, weight) in enumerate(
            zip(terms.positions, terms.weights, strict=True)
        ):
            found[position].append(Use(row, None if terms.uniform else weight, number == 0))
    return found


class Kernel(Protocol):
    """Computes blocks; one object per worker, with buffers of its own."""

    def weighted_sums(
        self, arithmetic: Arithmetic, count: int, read: ReadChunk, outs: Sequence[memoryview]
    ) -> Sequence[bool]:
        """Write ``count`` elements of each row to its buffer of ``outs``.

        Each input is read once, in ascending order. False for a row with a value that is not a
        finite number of the output dtype (then its buffer is not to be used as it is).
        """
        ...

    def close(self) -> None:
        """Give the buffers back."""
        ...
