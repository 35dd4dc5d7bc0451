"""What progress reads like."""

import pytest

from swavg.console.pace import Pace
from swavg.console.text import size_of

GB = 10**9


@pytest.mark.parametrize(
    ("unit", "notes", "now", "expected"),
    [
        # Nothing is known of the speed in the first second.
        ("bytes", [(0, 0)], 0, "0 of 140 GB"),
        ("bytes", [(0, 0), (0.9, GB)], 0.9, "1 of 140 GB"),
        ("bytes", [(0, 0), (20, 12.2 * GB)], 20, "12 of 140 GB, 610 MB/s, 3:30 left"),
        # Between two notes the time left goes down, and never below 0.
        ("bytes", [(0, 0), (20, 12.2 * GB)], 25, "12 of 140 GB, 610 MB/s, 3:25 left"),
        ("bytes", [(0, 0), (20, 12.2 * GB)], 999, "12 of 140 GB, 610 MB/s, 0:00 left"),
        ("bytes", [(0, 0), (100, 2 * GB)], 100, "2 of 140 GB, 20 MB/s, 1:55:00 left"),
        # What was there at the beginning says nothing of the speed.
        ("bytes", [(0, 100 * GB), (10, 101 * GB)], 10, "101 of 140 GB, 100 MB/s, 6:30 left"),
        # The speed is that of the last half minute or so.
        ("bytes", [(0, 0), (50, 50 * GB), (80, 80 * GB), (110, 83 * GB)], 110,
         "83 of 140 GB, 100 MB/s, 9:30 left"),
        ("bytes", [(0, 0), (100, 140 * GB)], 100, "140 of 140 GB, 1.4 GB/s"),
        ("bytes", [(0, GB), (10, GB)], 10, "1 of 140 GB"),
    ],
)  # fmt: skip
def test_bytes(unit, notes, now, expected):
    assert paced(unit, notes, 140 * GB).text(now) == expected


@pytest.mark.parametrize(
    ("unit", "total", "notes", "expected"),
    [
        ("points", 441, [(0, 0), (60, 1), (120, 3)], "3 of 441 points, 3:39:00 left"),
        ("points", 4000, [(0, 0), (60, 1500)], "1,500 of 4,000 points, 1:40 left"),
        ("batches", None, [(0, 1), (60, 7)], "7 batches"),
        ("bytes", None, [(0, 0), (10, 20 * 10**6)], "20 MB, 2 MB/s"),
        ("bytes", 0, [(0, 0)], "0 of 0 B"),
    ],
)
def test_other_work(unit, total, notes, expected):
    assert paced(unit, notes, total).text(notes[-1][0]) == expected


def paced(unit, notes, total):
    pace = Pace(unit)
    for at, done in notes:
        pace.note(int(done), total, at)
    return pace

    pace = Pace("bytes")
    for at in range(100_000):
        pace.note(at * 1000, 10**9, at / 1000)
    assert pace.text(99.999) == "0.10 of 1.00 GB, 1 MB/s, 15:00 left"


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [
        (12.2 * GB, 140 * GB, "12 of 140 GB"),
        (0.2 * GB, 24 * GB, "0.2 of 24.0 GB"),
        (0.2 * GB, 2.4 * GB, "0.20 of 2.40 GB"),
        (999, 999, "999 of 999 B"),
        (999, 1500, "1.00 of 1.50 kB"),
        (999.9 * GB, 999.9 * GB, "1.00 of 1.00 TB"),
        (5000 * 10**12, 5000 * 10**12, "5000 of 5000 TB"),
    ],
)
def test_both_sizes_have_the_unit_of_the_whole(part, whole, expected):
    assert size_of(part, whole) == expected
