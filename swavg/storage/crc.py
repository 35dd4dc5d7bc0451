"""Checksums of bytes whose parts were summed apart (zlib's crc32_combine, which Python lacks)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from functools import cache
from typing import Literal, Protocol

from swavg.errors import MissingDependencyError

Checksum = Literal["crc32", "crc32c"]
"""CRC-32 as in zips; CRC-32C (Castagnoli) as in TensorFlow's files."""

_POLYNOMIALS = {"crc32": 0xEDB88320, "crc32c": 0x82F63B78}

SHOWN = {"crc32": "CRC-32", "crc32c": "CRC-32C"}


class RegionChecksum(Protocol):
    """The checksum of the region that begins at ``offset`` of file number ``file`` of an output
    (None: of the file that asks)."""

    def __call__(self, offset: int, file: int | None = None) -> int: ...


@cache
def crc_function(kind: Checksum) -> Callable[[memoryview | bytes], int]:
    """What computes a checksum. MissingDependencyError if a library for it is missing."""
    if kind == "crc32":
        return zlib.crc32
    try:
        import google_crc32c
    except ImportError:
        raise MissingDependencyError(
            "The checksums of TensorFlow's files need google-crc32c, which is not installed.",
            hint="pip install 'swavg[tf]'",
        ) from None
    # It takes no memory that may change.
    return lambda data: int(google_crc32c.value(bytes(data)))


def _times(a: int, b: int, polynomial: int) -> int:
    """The product of two polynomials over GF(2), modulo the CRC's own; bits in reverse."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ polynomial if b & 1 else b >> 1
    return product


@cache
def _squares(polynomial: int) -> list[int]:
    """x to the power of 1, 2, 4, ..."""
    found = [1 << 30]
    for _ in range(66):
        found.append(_times(found[-1], found[-1], polynomial))
    return found


def combined(parts: Iterable[tuple[int, int]], kind: Checksum = "crc32") -> int:
    """The checksum of all bytes from ``(crc, size in bytes)`` of each part, in their order."""
    total, polynomial = 0, _POLYNOMIALS[kind]
    squares = _squares(polynomial)
    for crc, size in parts:
        bit = 3
        while size and total:
            if size & 1:
                total = _times(squares[bit], total, polynomial)
            size >>= 1
            bit += 1
        total ^= crc
    return total
