"""Whether two checkpoints are the same bytes: a digest of some places, one of all, and the whole
comparison."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from swavg.storage.paths import version_of
from swavg.storage.pool import Pool
from swavg.storage.sources import Source

_PLACE = 4096
_PLACES = 16
"""At most so many in each source, from its first bytes (a header) to its last, evenly."""
_CHUNK = 1 << 20
_ALL = 32
"""Bytes of a digest of everything."""
_STRETCH = 32 << 20
"""Bytes that one thread hashes in a row."""


def fingerprint(pool: Pool, sources: Sequence[Source]) -> tuple[str, bool]:
    """16 hexadecimal digits of the sizes and of places in the sources, equal wherever and whenever
    they are taken; and whether the places are all that there is. InputError.

    Of an object in a store it is the store's digest instead: sixteen places are as many requests.
    """
    digest = hashlib.blake2b(digest_size=8)
    for source in sources:
        digest.update(source.size.to_bytes(8, "little"))
        if (version := version_of(source)) is not None:
            digest.update(version.encode())
            continue
        for offset in _places(source.size):
            digest.update(pool.read(source, offset, min(_PLACE, source.size - offset)))
    whole = (s.size <= _PLACE * _PLACES or version_of(s) is not None for s in sources)
    return digest.hexdigest(), all(whole)


def digest_of_all(
    pool: Pool, sources: Sequence[Source], threads: int, on_read: Callable[[int], object]
) -> str:
    """64 hexadecimal digits that depend on every byte: BLAKE2b of the sizes of the sources and of
    the BLAKE2b of each of their MiB. ``on_read`` is called with numbers of bytes. InputError."""
    digest = hashlib.blake2b(digest_size=_ALL)

    def hashed(stretch: tuple[Source, int]) -> bytes:
        source, start = stretch
        end = min(start + _STRETCH, source.size)
        return b"".join(
            hashlib.blake2b(
                pool.read(source, offset, min(_CHUNK, end - offset)), digest_size=_ALL
            ).digest()
            for offset in range(start, end, _CHUNK)
        )

    stretches = [(s, start) for s in sources for start in range(0, s.size, _STRETCH)]
    for source in sources:
        digest.update(source.size.to_bytes(8, "little"))
    workers = ThreadPoolExecutor(threads)
    try:
        for (source, start), hashes in zip(stretches, workers.map(hashed, stretches), strict=True):
            digest.update(hashes)
            on_read(min(_STRETCH, source.size - start))
    finally:
        workers.shutdown(cancel_futures=True)
    return digest.hexdigest()


def _places(size: int) -> list[int]:
    if size <= _PLACE * _PLACES:
        return [*range(0, size, _PLACE)]
    return [(size - _PLACE) * place // (_PLACES - 1) for place in range(_PLACES)]


def same_bytes(pool: Pool, first: Sequence[Source], second: Sequence[Source]) -> bool:
    """Whether the sources hold the same, one by one: read until they differ. InputError."""
    if [source.size for source in first] != [source.size for source in second]:
        return False
    for one, other in zip(first, second, strict=True):
        if version_of(one) is not None and version_of(one) == version_of(other):
            continue
        offset, size = 0, _PLACE
        while offset < one.size:
            size = min(size, one.size - offset)
            if pool.read(one, offset, size) != pool.read(other, offset, size):
                return False
            offset, size = offset + size, min(4 * size, _CHUNK)
    return True
