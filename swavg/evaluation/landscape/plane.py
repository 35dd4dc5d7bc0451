"""The plane through three checkpoints (Izmailov et al. 2018, section 3.1; Garipov et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from swavg.analysis.chunks import Array
from swavg.errors import RequestError

# The sine of the angle between two sides below which float64 tells them hardly apart.
_FLAT = 1e-6


@dataclass(frozen=True, slots=True)
class Position:
    """Coordinates in the plane and the distance ``off`` it, all in units of weights."""

    x: float
    y: float
    off: float = 0.0


@dataclass(frozen=True, slots=True)
class Plane:
    """w1 at (0, 0), w2 at (``side``, 0), w3 at (``foot``, ``height``).

    With u = w2 - w1 and v = (w3 - w1) - <w3 - w1, u> / |u|^2 u, ``side`` is |u|, ``height`` |v|,
    ``foot`` <w3 - w1, u> / |u|. The axes are u / |u| and v / |v|: distances in the plane are
    Euclidean distances between weights.
    """

    side: float
    foot: float
    height: float

    @property
    def corners(self) -> tuple[Position, Position, Position]:
        return Position(0.0, 0.0), Position(self.side, 0.0), Position(self.foot, self.height)

    @property
    def centroid(self) -> Position:
        """Where the mean of the three lies."""
        return Position((self.side + self.foot) / 3, self.height / 3)

    def coefficients(self, x: float, y: float) -> tuple[float, float, float]:
        """(a1, a2, a3), whose sum is 1: the point at (x, y) is a1 w1 + a2 w2 + a3 w3."""
        third = y / self.height
        second = (x - third * self.foot) / self.side
        return 1 - second - third, second, third

    def project(self, first: float, second: float, square: float) -> Position:
        """Where a checkpoint lies, given <d, d2>, <d, d3> and <d, d> of its offset d from w1."""
        x = first / self.side
        y = (second - self.foot * x) / self.height
        return Position(x, y, math.sqrt(max(0.0, square - x * x - y * y)))


def plane_of(products: Array, names: Sequence[str]) -> tuple[Plane, tuple[Position, ...]]:
    """The plane through the first three checkpoints, and where the others lie.

    ``products`` are those of
    :func:`swavg.evaluation.landscape.products.offset_products`. Raises RequestError if the three
    are equal or lie on a line.
    """
    uu, uw, ww = float(products[1, 0]), float(products[2, 0]), float(products[2, 2])
    apart = uu + ww - 2 * uw
    for square, pair in ((uu, (0, 1)), (ww, (0, 2)), (apart, (1, 2))):
        if square <= 1e-24 * max(uu, ww) or square == 0:
            one, other = (names[index] for index in pair)
            raise RequestError(
                f"{one} and {other} have the same weights: three different checkpoints make a"
                " plane.",
                hint="swavg path shows the line between two.",
            )
    side, foot = math.sqrt(uu), uw / math.sqrt(uu)
    height = math.sqrt(max(0.0, ww - foot * foot))
    if height <= _FLAT * math.sqrt(ww):
        raise RequestError(
            f"{', '.join(names[:3])} lie on one line, which leaves no plane.",
            hint="Is one the average of the others? swavg path shows a line; mark= draws an"
            " average into a plane through three others.",
        )
    plane = Plane(side, foot, height)
    others = tuple(plane.project(*map(float, row)) for row in products[3:])
    return plane, others
