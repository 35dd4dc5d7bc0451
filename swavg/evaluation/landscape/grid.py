"""The points of a plane at which the loss is taken."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from swavg.errors import RequestError
from swavg.evaluation.landscape.plane import Position


@dataclass(frozen=True, slots=True)
class Grid:
    """Points at every pair of ``xs`` and ``ys`` (ascending), row by row from the lowest y."""

    xs: tuple[float, ...]
    ys: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.xs) * len(self.ys)

    def __iter__(self) -> Iterator[tuple[float, float]]:
        return ((x, y) for y in self.ys for x in self.xs)


def parse_shape(text: str) -> tuple[int, int]:
    """``21`` or ``31x21`` as points along x and y. Raises RequestError."""
    found = re.fullmatch(r"\s*(\d+)(?:\s*[xX×,]\s*(\d+))?\s*", text)  # noqa: RUF001
    if found is None:
        raise RequestError(
            f"is '{text}'; write 21, or 31x21 for points along x and y.", argument="grid"
        )
    shape = int(found[1]), int(found[2] or found[1])
    if min(shape) < 2:
        raise RequestError(
            f"is '{text}'; a surface needs two points along each axis.", argument="grid"
        )
    return shape


def make_grid(positions: Sequence[Position], shape: tuple[int, int], margin: float) -> Grid:
    """A grid around ``positions``, wider on every side by ``margin`` times their longer extent."""
    if not 0 <= margin < float("inf"):
        raise RequestError(
            f"is {margin}; it is a share of the extent, such as 0.2.", argument="margin"
        )
    xs, ys = [p.x for p in positions], [p.y for p in positions]
    rim = margin * max(max(xs) - min(xs), max(ys) - min(ys))
    return Grid(
        spaced(min(xs) - rim, max(xs) + rim, shape[0]),
        spaced(min(ys) - rim, max(ys) + rim, shape[1]),
    )


def spaced(low: float, high: float, count: int) -> tuple[float, ...]:
    """``count`` numbers from ``low`` to ``high``, both exactly."""
    steps = max(1, count - 1)
    inner = (low + (high - low) * (index / steps) for index in range(1, count - 1))
    return (low, *inner, high) if count > 1 else (low,)
