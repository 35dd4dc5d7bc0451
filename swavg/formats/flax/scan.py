"""The tree that a Flax file holds, without the bytes of its arrays: only where they lie."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from swavg.errors import InputError
from swavg.formats.blocks import Read
from swavg.formats.tensors import Shape

_BLOCK = 1 << 12
_MAX_TEXT = 1 << 16
_MAX_NESTING = 100
_MAX_NODES = 500_000
_MAX_DIMENSIONS = 64

# By the first byte: struct format of a length or a number.
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_TEXTS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_BYTES = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
_LISTS = {0xDC: ">H", 0xDD: ">I"}
_MAPS = {0xDE: ">H", 0xDF: ">I"}
_EXTENSIONS = {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_ARRAY, _SCALAR = 1, 3
"""Extensions of Flax: an array, and a number of NumPy."""
_CHUNKED = "__msgpack_chunked_array__"
"""A key of a map that stands for an array of more than a GiB."""


@dataclass(frozen=True, slots=True)
class Array:
    """An array: the name of its dtype, and where its bytes lie."""

    dtype: str
    shape: Shape
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Chunked:
    """An array whose elements lie in several, one after the other."""

    shape: Shape
    chunks: tuple[Array, ...]


Leaf = Array | Chunked | int | float | str | None
Node = Leaf | dict[str, "Node"]
"""Lists are maps of their indices. None: something else (bytes, a complex number)."""


def scan(read: Read, path: str, size: int) -> Node:
    """What the file of ``size`` bytes holds. InputError if it is damaged or too deep."""
    scanner = _Scanner(read, path, size)
    node = scanner.node(0)
    if scanner.at != size:
        raise InputError(path, f"{size - scanner.at:,} bytes follow its end")
    return node


def _listed(node: Node) -> list[Node]:
    """The values of a map of indices, in their order."""
    return [node.get(str(at)) for at in range(len(node))] if isinstance(node, dict) else []


class _Scanner:
    """Reads one value after the other; ``at`` is the offset of the next."""

    def __init__(self, read: Read, path: str, size: int) -> None:
        self._read, self._path, self._size = read, path, size
        self._block, self._begin, self._nodes = b"", 0, 0
        self.at = 0

    def _take(self, count: int) -> bytes:
        """The bytes that follow, few of them."""
        if self.at + count > self._size:
            raise InputError(self._path, "truncated: it ends within a value")
        start = self.at - self._begin
        if not 0 <= start <= start + count <= len(self._block):
            self._begin, start = self.at, 0
            whole = min(max(count, _BLOCK), self._size - self.at)
            self._block = bytes(self._read(self.at, whole))
        self.at += count
        return self._block[start : start + count]

    def _skip(self, count: int) -> None:
        if self.at + count > self._size:
            raise InputError(self._path, "truncated: it ends within a value")
        self.at += count

    def _number(self, format: str) -> int:
        """A length, or a number (of ``_NUMBERS`` also a float)."""
        found: int = struct.unpack(format, self._take(struct.calcsize(format)))[0]
        return found

    def node(self, nesting: int) -> Node:
        """The value that follows."""
        self._nodes += 1
        if self._nodes > _MAX_NODES or nesting > _MAX_NESTING:
            raise InputError(self._path, "holds more values, or deeper ones, than a model has")
        kind = self._take(1)[0]
        if kind <= 0x7F:
            return kind
        if kind >= 0xE0:
            return kind - 256
        if kind <= 0x8F or kind in _MAPS:
            count = kind & 0x0F if kind <= 0x8F else self._number(_MAPS[kind])
            return self._map(count, nesting)
        if kind <= 0x9F or kind in _LISTS:
            count = kind & 0x0F if kind <= 0x9F else self._number(_LISTS[kind])
            return {str(index): self.node(nesting + 1) for index in self._counted(count)}
        if kind <= 0xBF or kind in _TEXTS:
            return self._text(kind)
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind in _BYTES:
            self._skip(self._number(_BYTES[kind]))
            return None
        if kind in _EXTENSIONS or kind in _FIXED_EXTENSIONS:
            return self._extension(kind)
        # Nothing, false, true; 0xC1 is never used.
        if kind == 0xC1:
            raise InputError(self._path, "cannot be read as MessagePack")
        return None if kind == 0xC0 else kind - 0xC2

    def _counted(self, count: int) -> Iterator[int]:
        if count > self._size - self.at:
            raise InputError(self._path, "truncated: it ends within a value")
        return iter(range(count))

    def _map(self, count: int, nesting: int) -> Node:
        found: dict[str, Node] = {}
        for _ in self._counted(count):
            key = self.node(nesting + 1)
            if not isinstance(key, (str, int)) or str(key) in found:
                raise InputError(self._path, f"has a key that is no name, or twice: {key!r:.80}")
            found[str(key)] = self.node(nesting + 1)
        if _CHUNKED not in found:
            return found
        shape, chunks = _listed(found.get("shape")), _listed(found.get("chunks"))
        sizes = tuple(each for each in shape if isinstance(each, int) and each >= 0)
        arrays = tuple(each for each in chunks if isinstance(each, Array))
        numels = [math.prod(each.shape) for each in arrays]
        if (
            (len(sizes), len(arrays)) != (len(shape), len(chunks))
            or len(sizes) > _MAX_DIMENSIONS
            or not arrays
            or len({each.dtype for each in arrays}) != 1
            or sum(numels) != math.prod(sizes)
        ):
            raise InputError(self._path, "corrupt: an array's chunks are not what it consists of")
        return Chunked(sizes, arrays)

    def _text(self, kind: int) -> str:
        length = kind & 0x1F if kind <= 0xBF else self._number(_TEXTS[kind])
        if length > _MAX_TEXT:
            self._skip(length)
            return ""
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            raise InputError(self._path, "holds a text that cannot be read") from None

    def _extension(self, kind: int) -> Array | None:
        length = _FIXED_EXTENSIONS.get(kind) or self._number(_EXTENSIONS[kind])
        code = self._number(">b")
        end = self.at + length
        self._skip(length)
        if code not in (_ARRAY, _SCALAR):
            return None
        self.at, nodes = end - length, self._nodes
        count = self._take(1)[0]
        dimensions = self.node(_MAX_NESTING - 1)
        dtype = self.node(_MAX_NESTING - 1)
        lead = self._take(1)[0]
        nbytes = self._number(_BYTES[lead]) if lead in _BYTES else -1
        offset = self.at
        shape = _listed(dimensions)
        sizes = tuple(each for each in shape if isinstance(each, int) and each >= 0)
        if (
            count != 0x93
            or not isinstance(dimensions, dict)
            or not isinstance(dtype, str)
            or len(sizes) != len(shape)
            or len(sizes) > _MAX_DIMENSIONS
            or math.prod(filter(None, sizes)) >= 2**63
            or nbytes < 0
            or offset + nbytes != end
        ):
            raise InputError(self._path, f"corrupt: an array before byte {end:,}")
        # What describes an array is no value of the tree.
        self.at, self._nodes = end, nodes
        return Array(dtype, sizes, offset, nbytes)
