"""Records are compared with their checksums once, whoever asks first."""

import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from swavg.errors import InputError
from swavg.formats.records import Record, Unchecked, checksum_of
from swavg.storage.pool import Pool
from swavg.storage.sources import LocalFile

DATA = bytes(range(256)) * 9000


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(DATA)
    return LocalFile.find(str(path))


def test_a_record_of_several_reads_has_one_checksum(file):
    with Pool() as pool:
        record = Record("w", 7, len(DATA) - 9, 0)
        assert checksum_of(pool, file, record, "crc32") == zlib.crc32(DATA[7:-2])
        assert checksum_of(pool, file, Record("none", 3, 0, 0), "crc32") == 0


def test_each_record_is_read_once_and_only_what_is_asked_for(file):
    reads = []

    class Counting(Pool):
        def read_into(self, source, offset, out):
            reads.append(offset)
            super().read_into(source, offset, out)

    good = Record("good", 0, 100, zlib.crc32(DATA[:100]))
    bad = Record("bad", 100, 100, 1)
    unchecked = Unchecked((file,), {0: (good, Record("none", 100, 0, 9), bad)}, "crc32")
    with Counting() as pool:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: unchecked.check(pool, [(0, 0)]), range(20)))
        assert reads == [0]
        for _ in range(2):
            with pytest.raises(InputError, match="its record 'bad' does not have the CRC-32"):
                unchecked.check(pool, [(0, 0), (0, 100)])
        # There is nothing that tells of bytes elsewhere.
        unchecked.check(pool, [(0, 50)])
    assert reads == [0, 100, 100]
