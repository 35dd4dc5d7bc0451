"""What the entries of a bundle's index say: dtype, shape, and where the bytes lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from swavg.dtypes import BY_NAME, DType
from swavg.errors import InputError
from swavg.formats.tensorflow import sstable
from swavg.formats.tensorflow.proto import Value, field, fields, fixed32, messages
from swavg.formats.tensors import Shape
from swavg.storage.paths import find_file
from swavg.storage.pool import Pool
from swavg.storage.sources import Source

DIMENSION_LIMIT = 64
SHARD_LIMIT = 10_000

DTYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 8: "complex64",
    9: "int64", 10: "bool", 14: "bfloat16", 17: "uint16", 18: "complex128", 19: "float16",
    22: "uint32", 23: "uint64", 24: "float8_e5m2", 25: "float8_e4m3fn",
    26: "float8_e4m3fnuz", 28: "float8_e5m2fnuz",
}  # fmt: skip
"""The names of TensorFlow's numbers of dtypes; others are kept as bytes."""
NUMBERS = {name: number for number, name in DTYPES.items()}
STRING = 7

Slice = tuple[tuple[int, int], ...]
"""Start and length in each dimension; a length of -1 is all of it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor, or a slice of one: ``size`` bytes at ``offset`` of data file ``shard``, whose
    CRC-32C is ``crc``. One of ``slices`` has no bytes of its own. ``number`` is TensorFlow's of
    the dtype."""

    number: int
    shape: Shape
    shard: int = 0
    offset: int = 0
    size: int = 0
    crc: int = 0
    slices: tuple[Slice, ...] = ()

    @property
    def dtype(self) -> DType | None:
        name = DTYPES.get(self.number)
        return None if name is None else BY_NAME[name]


@dataclass(frozen=True, eq=False, slots=True)
class Bundle:
    """An index that was read: the number of data files, and the entries by key."""

    prefix: str
    shards: int
    entries: dict[bytes, Entry]

    def data_file(self, shard: int) -> str:
        return data_file(self.prefix, shard, self.shards)


def data_file(prefix: str, shard: int, shards: int) -> str:
    return f"{prefix}.data-{shard:05d}-of-{shards:05d}"


def read_bundle(prefix: str) -> tuple[Source, Bundle]:
    """The index of the checkpoint at a prefix, read and checked, but for the data files."""
    path = f"{prefix}.index"
    file = find_file(path)
    if file.size > sstable.LIMIT:
        raise InputError(path, f"has {file.size:,} bytes; at most {sstable.LIMIT:,} are allowed")
    with Pool() as pool:
        # All are counted before the first is looked into.
        pairs = iter([*sstable.entries(path, bytes(pool.read(file, 0, file.size)))])
    try:
        key, header = next(pairs, (b"none", b""))
        shards = _shards(header) if key == b"" else 0
        if not 0 < shards <= SHARD_LIMIT:
            raise ValueError(f"it tells of {shards:,} data files")
        entries = {key: decoded(value) for key, value in pairs}
        if any(entry.shard >= shards for entry in entries.values()):
            raise ValueError("an entry is in a data file that it does not tell of")
    except ValueError as error:
        raise InputError(path, f"is no index of a TensorFlow checkpoint: {error}") from None
    return file, Bundle(prefix, shards, entries)


def _shards(header: bytes) -> int:
    """The number of data files that a header tells of. ValueError for what is not read."""
    values = dict(fields(header))
    if values.get(2, 0) != 0:
        raise ValueError("its numbers are big-endian")
    version = values.get(3, b"")
    if isinstance(version, bytes) and _count(dict(fields(version)).get(2, 0)) > 1:
        raise ValueError("it is of a later version of the format")
    return _count(values.get(1, 0))


def _count(value: Value) -> int:
    if not isinstance(value, int) or value >= 1 << 63:
        raise ValueError("a number is none")
    return value


def decoded(data: bytes) -> Entry:
    """An entry of the index. ValueError if it is none."""
    numbers = [0] * 8
    shape: Shape = ()
    slices: list[Slice] = []
    for number, value in fields(data):
        if number == 2 and isinstance(value, bytes):
            shape = _shape(value)
        elif number == 7 and isinstance(value, bytes):
            slices.append(tuple(map(_extent, messages(value, 1))))
        elif number < 7 and type(value) is int and value < 1 << 63:
            numbers[number] = value
        else:
            raise ValueError("an entry that is none")
    dtype, _, shard, offset, size, crc = numbers[1:7]
    return Entry(dtype, shape, shard, offset, size, sstable.unmasked(crc), tuple(slices))


@lru_cache(1024)
def _shape(data: bytes) -> Shape:
    sizes = []
    for number, value in fields(data):
        if number == 2 and isinstance(value, bytes):
            sizes.append(_count(dict(fields(value)).get(1, 0)))
        elif number == 3:
            raise ValueError("a tensor is of unknown rank")
    if len(sizes) > DIMENSION_LIMIT or math.prod(filter(None, sizes)) >= 1 << 63:
        raise ValueError("a tensor has an impossible shape")
    return tuple(sizes)


def _extent(data: bytes) -> tuple[int, int]:
    values = dict(fields(data))
    return _count(values.get(1, 0)), _count(values[2]) if 2 in values else -1


def encoded(entry: Entry) -> bytes:
    """An entry as the index has it."""
    dims = b"".join(field(2, field(1, size) if size else b"") for size in entry.shape)
    numbers = (entry.shard, entry.offset, entry.size)
    parts = [field(1, entry.number), field(2, dims)]
    parts += [field(3 + at, number) for at, number in enumerate(numbers) if number]
    for extents in entry.slices:
        ranges = (
            (field(1, start) if start else b"") + (field(2, length) if length >= 0 else b"")
            for start, length in extents
        )
        parts.append(field(7, b"".join(field(1, each) for each in ranges)))
    if not entry.slices:
        # Also where it is 0: the size of an index must not depend on it.
        parts.append(fixed32(6, sstable.masked(entry.crc)))
    return b"".join(parts)


def with_crc(value: bytes, crc: int) -> bytes:
    """An encoded entry with another checksum, which it ends with."""
    return value[:-4] + fixed32(6, sstable.masked(crc))[-4:]
