"""Objects as sources: each byte is fetched once, and of the version that was found."""

import os
import pickle
import threading
from itertools import pairwise

import pytest

from swavg.errors import InputError
from swavg.storage.fetching import joined
from swavg.storage.paths import expect, find_file, look_ahead
from swavg.storage.pool import Pool

DATA = os.urandom(1 << 20)


@pytest.fixture
def source(bucket, proxy, tmp_path):
    (tmp_path / "data").write_bytes(DATA)
    found = find_file(bucket.put(tmp_path / "data"))
    proxy.requests.clear()
    return found


def covered(proxy):
    """The ranges that were fetched, in their order; none twice."""
    (ranges,) = proxy.ranges().values() if proxy.ranges() else [[]]
    ranges = sorted(ranges)
    for (_, stop), (start, _) in pairwise(ranges):
        assert stop <= start
    return ranges


def test_it_is_a_value_without_secrets(source):
    again = pickle.loads(pickle.dumps(source))
    assert again == source
    assert hash(again) == hash(source)
    assert b"a-very-secret-key" not in pickle.dumps(source)
    assert (source.size, source.forks) == (len(DATA), False)
    assert source.identity == (source.name, source.etag, len(DATA))


def test_small_reads_are_answered_from_what_was_fetched(source, proxy):
    with Pool() as pool:
        for offset in (0, 8, 100, 60_000, 60_001, 65_000):
            assert pool.read(source, offset, 500) == DATA[offset : offset + 500]
        end = len(DATA)
        for size in (22, 100, 60_000):
            assert pool.read(source, end - size, size) == DATA[-size:]
        assert pool.read(source, 70_000, 300_000) == DATA[70_000:370_000]
        assert pool.read(source, 0, end) == DATA
    assert len(covered(proxy)) <= 5
    assert proxy.sent <= 1.05 * len(DATA)


def test_what_is_expected_is_fetched_at_once_and_taken_from_there(source, proxy):
    ranges = [(0, 1000), (1000, 5000), (6000, 7000), (300_000, 500_000), (900_000, 900_001)]
    with Pool() as pool:
        expect(pool, ((source, *ends) for ends in ranges))
        for start, stop in ranges:
            assert pool.read(source, start, stop - start) == DATA[start:stop]
        assert pool.read(source, 350_000, 5) == DATA[350_000:350_005]
        # Those that lie near each other are one.
        assert covered(proxy) == [(0, 7000), (300_000, 500_000), (900_000, 900_001)]
        assert [*joined(ranges, gap=0)] == [(0, 5000), *ranges[2:]]
        assert pool.read(source, 499_999, 2) == DATA[499_999:500_001]
        expect(pool, [(source, len(DATA) - 9, len(DATA) + 9), (source, len(DATA) + 5, 1 << 30)])
        assert pool.read(source, len(DATA) - 9, 9) == DATA[-9:]
        with pytest.raises(InputError, match="short of its data"):
            pool.read(source, len(DATA) - 9, 18)
        expect(pool, [(source, 100_000, 300_000)])
        assert pool.read(source, 100_000, 200_000) == DATA[100_000:300_000]


def test_what_is_read_begins_before_all_is_there(source, proxy):
    proxy.fault = lambda method, path, number: ("stall", 600_000)
    with Pool() as pool:
        expect(pool, [(source, 0, len(DATA))])
        assert pool.read(source, 0, 400_000) == DATA[:400_000]


def test_headers_of_several_are_fetched_side_by_side(bucket, proxy, tmp_path):
    urls = []
    for name in "abc":
        (tmp_path / name).write_bytes(DATA)
        urls.append(bucket.put(tmp_path / name))
    together = threading.Barrier(3, timeout=20)

    def wait_for_others(method, path, number):
        together.wait()

    proxy.fault = wait_for_others
    look_ahead(urls)
    proxy.fault = lambda method, path, number: None
    count = len(proxy.requests)
    with Pool() as pool:
        for url in urls:
            assert pool.read(find_file(url), 0, 9) == DATA[:9]
            assert pool.read(find_file(url), len(DATA) - 9, 9) == DATA[-9:]
    assert len(proxy.requests) == count


def test_a_range_beyond_the_end_and_another_version_are_input_errors(source, bucket, tmp_path):
    with Pool() as pool:
        with pytest.raises(InputError, match="short of its data"):
            pool.read(source, len(DATA) - 5, 10)
        (tmp_path / "data").write_bytes(DATA[::-1])
        bucket.put(tmp_path / "data")
        with pytest.raises(InputError, match="changed while it was read"):
            pool.read(source, 500_000, 10)
        expect(pool, [(source, 0, 10)])
        with pytest.raises(InputError, match="changed while it was read"):
            pool.read(source, 0, 10)
