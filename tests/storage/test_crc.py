"""Checksums of parts, combined."""

import itertools
import random

import pytest

from swavg.storage.crc import combined, crc_function


@pytest.mark.parametrize(("kind", "known"), [("crc32", 0xCBF43926), ("crc32c", 0xE3069283)])
def test_parts_have_the_checksum_of_the_whole(kind, known):
    crc_of = crc_function(kind)
    assert crc_of(b"123456789") == known
    data = random.Random(0).randbytes(10_000)
    cuts = [0, 0, 1, 9, 4096, 9_999, len(data)]
    parts = [data[a:b] for a, b in itertools.pairwise(cuts)]
    found = combined(((crc_of(memoryview(part)), len(part)) for part in parts), kind)
    assert found == crc_of(data)
