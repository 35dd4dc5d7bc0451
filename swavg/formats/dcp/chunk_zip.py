"""The zip that holds a tensor of a distributed checkpoint, as torch.save writes it."""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from swavg.dtypes import DType
from swavg.formats.tensors import Shape
from swavg.formats.torch.plain import pickled_tensor
from swavg.formats.zip_layout import ALIGNMENT, Member, arranged, ending

_DIGITS = 40
# Where a CRC-32 stands in a descriptor, and in an entry of the directory.
_IN_DESCRIPTOR, _IN_ENTRY = 4, 16


class _Tail(NamedTuple):
    """What follows the data: its bytes but for the digits, which begin at ``digits``, and for the
    checksums at ``data_crcs`` and ``digits_crcs``."""

    blank: bytes
    digits: int
    data_crcs: tuple[int, ...]
    digits_crcs: tuple[int, ...]


@dataclass(frozen=True)
class ChunkZip:
    """The zip of a tensor of this dtype and shape: equal for all but for the data, the checksum,
    and the digits that torch has for telling files apart."""

    dtype: DType
    shape: Shape

    @cached_property
    def members(self) -> tuple[Member, ...]:
        bodies = {
            "data.pkl": pickled_tensor(self.dtype, self.shape),
            ".format_version": b"1",
            ".storage_alignment": str(ALIGNMENT).encode(),
            "byteorder": b"little",
            "data/0": None,
            "version": b"3\n",
            ".data/serialization_id": b"0" * _DIGITS,
        }
        nbytes = self.dtype.nbytes(math.prod(self.shape))
        members = (
            Member(f"archive/{name}", nbytes if body is None else len(body), body or b"")
            for name, body in bodies.items()
        )
        return tuple(arranged(list(members)))

    @property
    def data(self) -> Member:
        """The member that is the tensor."""
        return next(member for member in self.members if member.name == "archive/data/0")

    @cached_property
    def head(self) -> bytes:
        """The bytes up to the data."""
        before = self.members[: self.members.index(self.data)]
        return b"".join((*map(_whole, before), self.data.local))

    @cached_property
    def _tail(self) -> _Tail:
        data, last = self.data, self.members[-1]
        behind = self.members[self.members.index(data) + 1 :]
        end = data.start + data.size
        blank = data.descriptor(0) + b"".join(map(_whole, behind))
        data_crcs = [_IN_DESCRIPTOR] if data.size else []
        digits_crcs = [len(blank) - len(last.descriptor(0)) + _IN_DESCRIPTOR]
        directory = b""
        for member in self.members:
            place = len(blank) + len(directory) + _IN_ENTRY
            if member is data:
                data_crcs.append(place)
            elif member is last:
                digits_crcs.append(place)
            directory += member.entry(0 if member is data else zlib.crc32(member.head))
        blank += directory + ending(len(self.members), last.end, len(directory))
        return _Tail(blank, last.start - end, tuple(data_crcs), tuple(digits_crcs))

    def tail(self, crc: int, name: str) -> bytes:
        """The bytes behind the data, which has this checksum, in the tensor ``name``."""
        blank, at, data_crcs, digits_crcs = self._tail
        made, own = bytearray(blank), digits(name)
        made[at : at + _DIGITS] = own
        for place in data_crcs:
            struct.pack_into("<I", made, place, crc)
        for place in digits_crcs:
            struct.pack_into("<I", made, place, zlib.crc32(own))
        return bytes(made)

    @cached_property
    def digits_at(self) -> int:
        """Where the digits begin, from the beginning of the zip on."""
        return self.members[-1].start

    @cached_property
    def size(self) -> int:
        """Bytes of the whole zip."""
        return self.data.start + self.data.size + len(self._tail.blank)


def _whole(member: Member) -> bytes:
    return member.local + member.head + member.descriptor(zlib.crc32(member.head))


def digits(name: str) -> bytes:
    """The digits of a tensor of this name."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return str(int.from_bytes(digest)).encode()[-_DIGITS:].zfill(_DIGITS)
