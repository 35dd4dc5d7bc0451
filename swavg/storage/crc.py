"""The CRC-32 of bytes whose parts were summed apart (zlib's crc32_combine, which Python lacks)."""

from __future__ import annotations

from collections.abc import Iterable

_POLYNOMIAL = 0xEDB88320


def _times(a: int, b: int) -> int:
    """The product of two polynomials over GF(2), modulo the CRC's own; bits in reverse."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ _POLYNOMIAL if b & 1 else b >> 1
    return product


_SQUARES = [1 << 30]
for _ in range(66):
    _SQUARES.append(_times(_SQUARES[-1], _SQUARES[-1]))


def combined(parts: Iterable[tuple[int, int]]) -> int:
    """The CRC-32 of all bytes from ``(crc, size in bytes)`` of each part, in their order."""
    total = 0
    for crc, size in parts:
        bit = 3
        while size and total:
            if size & 1:
                total = _times(_SQUARES[bit], total)
            size >>= 1
            bit += 1
        total ^= crc
    return total
