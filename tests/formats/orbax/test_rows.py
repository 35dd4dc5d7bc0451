"""Rows of chunks: where they lie, and that each is decoded once."""

import numpy as np
import pytest

from swavg.formats.orbax.rows import Grid, Rows


@pytest.mark.parametrize(
    ("shape", "chunk", "rows"),
    [
        ((10,), (4,), [(0, 4), (4, 8), (8, 10)]),
        ((5, 3), (2, 2), [(0, 6), (6, 12), (12, 15)]),
        # Each index of the first axis has rows of its own.
        ((2, 5, 3), (1, 2, 3), [(0, 6), (6, 12), (12, 15), (15, 21), (21, 27), (27, 30)]),
        ((2, 3), (1, 1), [(at, at + 1) for at in range(6)]),
        ((2, 3), (5, 5), [(0, 6)]),
        ((), (), [(0, 1)]),
    ],
)
def test_rows_follow_each_other(shape, chunk, rows):
    for itemsize in (1, 4):
        grid = Grid.of(shape, chunk, itemsize)
        for start, stop in rows:
            for at in (start * itemsize, stop * itemsize - 1):
                assert grid.row_at(at) == (start * itemsize, stop * itemsize)


def test_the_last_two_rows_are_kept():
    data, decoded, rows = np.arange(100, dtype=np.uint8), [], Rows()

    def decode(row):
        decoded.append(row[0])
        middle = row[0] + 5
        yield from (data[slice(*part)].data for part in ((row[0], middle), (middle, row[1])))

    def read(array, start, offset, size):
        out = bytearray(size)
        rows.read_into(array, (start, start + 10), offset, memoryview(out), decode)
        return bytes(out)

    for start, offset in [(0, 3), (10, 14), (0, 0), (20, 20), (0, 9), (10, 12)]:
        assert read("a", start, offset, 1) == bytes([offset])
    assert decoded == [0, 10, 20, 10]
    # Another array has rows of its own.
    assert read("b", 0, 2, 3) == bytes([2, 3, 4])
    assert decoded[4:] == [0]
