"""Digests of the bytes of sources."""

import hashlib

import pytest

from swavg.storage import fingerprints
from swavg.storage.paths import find_file
from swavg.storage.pool import Pool


def expected(*files):
    """What docs/recipes.md says that a digest of all bytes is."""
    whole = b""
    for file in files:
        whole += len(file).to_bytes(8, "little")
    for file in files:
        for start in range(0, len(file), 1 << 20):
            whole += hashlib.blake2b(file[start : start + (1 << 20)], digest_size=32).digest()
    return hashlib.blake2b(whole, digest_size=32).hexdigest()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_digest_of_all_bytes_is_what_the_page_says(tmp_path, monkeypatch, threads):
    monkeypatch.setattr(fingerprints, "_STRETCH", 2 << 20)
    contents = [bytes(range(251)) * 25_000, b"", b"short"]
    paths = [tmp_path / str(number) for number in range(3)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    read = []
    with Pool() as pool:
        sources = [find_file(str(path)) for path in paths]
        found = fingerprints.digest_of_all(pool, sources, threads, read.append)
    assert found == expected(*contents)
    assert sum(read) == sum(map(len, contents))
