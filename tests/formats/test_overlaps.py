"""Boxes that tile, against counting."""

from __future__ import annotations

import random

import numpy as np

from swavg.formats.overlaps import fault


def test_boxes_tile_where_each_element_counts_once():
    chance = random.Random(1)
    outcomes = {True: 0, False: 0}
    for _ in range(5000):
        shape = tuple(chance.randint(0, 3) for _ in range(chance.randint(0, 3)))
        boxes = []
        for _ in range(chance.randint(0, 4)):
            start = tuple(chance.randint(0, size) for size in shape)
            extent = tuple(
                chance.randint(0, size - first) for size, first in zip(shape, start, strict=True)
            )
            boxes.append((start, extent))
        counts = np.zeros(shape, int)
        for start, extent in boxes:
            counts[tuple(slice(a, a + n) for a, n in zip(start, extent, strict=True))] += 1
        tiles = bool((counts == 1).all())
        assert (fault(shape, boxes) is None) == tiles, (shape, boxes)
        outcomes[tiles] += 1
    assert min(outcomes.values()) > 500
