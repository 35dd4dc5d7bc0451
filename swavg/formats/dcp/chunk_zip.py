"""The zip that holds a tensor of a distributed checkpoint, as torch.save writes it."""

from __future__ import annotations

import hashlib
import math
import zlib
from dataclasses import dataclass
from functools import cached_property

from swavg.dtypes import DType
from swavg.formats.checkpoint import Shape
from swavg.formats.torch.archive_layout import ALIGNMENT, Member, arranged, ending
from swavg.formats.torch.plain import pickled_tensor

_DIGITS = 40


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
            Member(f"archive/{name}", nbytes if body is None else len(body), body)
            for name, body in bodies.items()
        )
        return tuple(arranged(list(members)))

    @cached_property
    def head(self) -> bytes:
        """The bytes up to the data."""
        parts: list[bytes] = []
        for member in self.members:
            if member.body is None:
                return b"".join((*parts, member.local))
            parts += [member.local, member.body, member.descriptor(zlib.crc32(member.body))]
        raise AssertionError("no data")

    def tail(self, crc: int, name: str) -> bytes:
        """The bytes behind the data, which has this checksum, in the tensor ``name``."""
        parts: list[bytes] = []
        entries = []
        for member in self.members:
            body = member.body
            if member is self.members[-1]:
                body = digits(name)
            total = crc if body is None else zlib.crc32(body)
            if body is None:
                parts = [member.descriptor(total)]
            else:
                parts += [member.local, body, member.descriptor(total)]
            entries.append(member.entry(total))
        directory = b"".join(entries)
        end = ending(len(entries), self.members[-1].end, len(directory))
        return b"".join((*parts, directory, end))

    @property
    def digits_at(self) -> int:
        """Where the digits begin, from the beginning of the zip on."""
        return self.members[-1].start

    @cached_property
    def size(self) -> int:
        """Bytes of the whole zip."""
        data = next(member for member in self.members if member.body is None)
        return data.start + data.size + len(self.tail(0, ""))


def digits(name: str) -> bytes:
    """The digits of a tensor of this name."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return str(int.from_bytes(digest)).encode()[-_DIGITS:].zfill(_DIGITS)
