"""Where the names of points stand so that they hide neither points nor each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""


def place_labels(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    frame: Box,
    obstacles: Sequence[tuple[float, float]] = (),
    gap: float = 6.0,
) -> list[tuple[float, float]]:
    """The lower left corner of each label, beside its anchor; all in one unit of length.

    Of the places around each anchor the one that overlaps least is taken, first those nearest, at
    the right and above. Labels never leave the ``frame`` unless they are larger than it.
    """
    taken: list[Box] = []
    chosen = []
    points = [*anchors, *obstacles]
    for (x, y), size in zip(anchors, sizes, strict=True):
        best, least = None, math.inf
        for order, (left, bottom) in enumerate(_around(x, y, *size, gap)):
            left = max(frame[0], min(left, frame[2] - size[0]))
            bottom = max(frame[1], min(bottom, frame[3] - size[1]))
            box = (left, bottom, left + size[0], bottom + size[1])
            cost = 0.05 * order
            cost += sum(8.0 for px, py in anchors if _covers(box, px, py, 0.75 * gap))
            cost += sum(1.0 for px, py in points if _covers(box, px, py, 0.3 * gap))
            own = _away(box, x, y)
            cost += sum(3.0 for px, py in anchors if _away(box, px, py) < own)
            cost += sum(30.0 * _overlap(box, other) for other in taken)
            if cost < least:
                best, least = box, cost
        assert best is not None
        taken.append(best)
        chosen.append((best[0], best[1]))
    return chosen


def along(points: Sequence[tuple[float, float]], step: float) -> list[tuple[float, float]]:
    """The points, and others on the lines from each to the next, at most ``step`` apart."""
    found = list(points[:1])
    for (x, y), (u, v) in pairwise(points):
        pieces = max(1, math.ceil(math.hypot(u - x, v - y) / step))
        found += [
            (x + (u - x) * piece / pieces, y + (v - y) * piece / pieces)
            for piece in range(1, pieces + 1)
        ]
    return found


def _around(
    x: float, y: float, width: float, height: float, gap: float
) -> Iterator[Sequence[float]]:
    """Lower left corners of a label around a point, the usual places first."""
    for reach in (gap, 1.8 * gap, 2.8 * gap):
        diagonal = 0.75 * reach
        yield x + diagonal, y + diagonal
        yield x - diagonal - width, y + diagonal
        yield x + diagonal, y - diagonal - height
        yield x - diagonal - width, y - diagonal - height
        yield x + reach, y - height / 2
        yield x - reach - width, y - height / 2
        yield x - width / 2, y + reach
        yield x - width / 2, y - reach - height


def _covers(box: Box, x: float, y: float, rim: float) -> bool:
    return box[0] - rim < x < box[2] + rim and box[1] - rim < y < box[3] + rim


def _away(box: Box, x: float, y: float) -> float:
    """The distance of a point from a box."""
    return math.hypot(max(box[0] - x, 0, x - box[2]), max(box[1] - y, 0, y - box[3]))


def _overlap(one: Box, other: Box) -> float:
    """The shared area as a share of the smaller box."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return 0.2 + width * height / max(min(areas), 1e-12)
