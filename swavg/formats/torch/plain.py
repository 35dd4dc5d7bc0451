"""A fresh torch zip with a plain state dict: its pickle is written by hand, without torch."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

from swavg.dtypes import DType
from swavg.errors import RequestError
from swavg.formats.layout import Specs
from swavg.formats.strides import row_major_strides
from swavg.formats.tensors import Shape
from swavg.formats.zip_layout import (
    ALIGNMENT,
    ArchiveLayout,
    Member,
    arranged,
    lay_out_archive,
)

RECIPE = "swavg.json"
_ROOT = "archive"

Entry = tuple[str, DType, Shape, int]
"""Name, dtype and shape of a tensor, and the key of its storage."""


def lay_out_plain(
    specs: Specs,
    numbers: Sequence[int],
    ties: Sequence[Sequence[str]],
    recipe: bytes,
    name: str,
    check: Callable[[str], None],
) -> ArchiveLayout:
    """A file that ``torch.load(weights_only=True)`` gives back as an OrderedDict of the tensors.

    The names of one group of ``ties`` share a storage, with the bytes of the first of them; a
    name without a tensor of its own follows that one. RequestError for dtypes unknown to torch.
    """
    group_of = {tied: group for group in ties for tied in group}
    present = {specs.names[number] for number in numbers}
    sizes = specs.sizes
    written: list[int] = []
    keys: dict[str, int] = {}
    entries: list[Entry] = []
    for number in numbers:
        text, dtype, shape = specs.at(number)
        if dtype.bits % 8:
            raise RequestError(f"'{text}': torch files have no dtype {dtype}")
        group = group_of.get(text, (text,))
        key = keys.get(group[0])
        if key is not None and specs.form[written[key]] == specs.form[number]:
            entries.append((text, dtype, shape, key))
            continue
        key = keys[group[0]] = len(written)
        written.append(number)
        alone = (tied for tied in group if tied not in present)
        entries += [(each, dtype, shape, key) for each in (text, *alone)]
    members = (
        _member("data.pkl", b"".join(_pickled(entries))),
        _member(".format_version", b"1"),
        _member(".storage_alignment", str(ALIGNMENT).encode()),
        _member("byteorder", b"little"),
        *(Member(f"{_ROOT}/data/{key}", sizes[number]) for key, number in enumerate(written)),
        _member("version", b"3\n"),
        _member(RECIPE, recipe),
    )
    arrangement = tuple(arranged(members))
    starts = [each.start for each in arrangement[4 : 4 + len(written)]]
    return lay_out_archive(arrangement, specs, written, starts, name=name, check=check)


def _member(name: str, body: bytes) -> Member:
    return Member(f"{_ROOT}/{name}", len(body), body)


class Memo:
    """Opcodes the first time, then a reference to what they made."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}

    def __call__(self, opcodes: bytes) -> bytes:
        if opcodes in self._places:
            return b"h" + bytes([self._places[opcodes]])
        self._places[opcodes] = len(self._places)
        return opcodes + b"q" + bytes([self._places[opcodes]])


_ORDERED = b"ccollections\nOrderedDict\n"


def _pickled(entries: Sequence[Entry]) -> Iterator[bytes]:
    """Protocol 2, as torch.save writes an OrderedDict of contiguous tensors."""
    once = Memo()
    yield b"\x80\x02" + once(_ORDERED) + b")R("
    for name, dtype, shape, key in entries:
        yield _text(name)
        yield _tensor(once, dtype, shape, key)
    yield b"u."


def pickled_tensor(dtype: DType, shape: Shape) -> bytes:
    """What torch.save writes of one contiguous tensor, whose storage is the first."""
    return b"\x80\x02" + _tensor(Memo(), dtype, shape, 0) + b"."


def _tensor(once: Memo, dtype: DType, shape: Shape, key: int) -> bytes:
    typed = dtype.torch_storage is not None
    kind = f"ctorch\n{dtype.torch_storage}\n" if typed else "ctorch.storage\nUntypedStorage\n"
    function = "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3"
    strides = row_major_strides(shape)
    numel = strides[0] * shape[0] if shape else 1
    return b"".join(
        (
            once(f"ctorch._utils\n{function}\n".encode()) + b"((",
            once(_text("storage")) + once(kind.encode()) + _text(str(key)),
            once(_text("cpu")) + _int(numel if typed else dtype.nbytes(numel)) + b"tQK\0",
            _tuple(shape) + _tuple(strides),
            b"\x89" + once(_ORDERED) + b")R",
            (b"" if typed else once(f"ctorch\n{dtype.name}\n".encode())) + b"tR",
        )
    )


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _int(value: int) -> bytes:
    if value < 1 << 8:
        return b"K" + bytes([value])
    if value < 1 << 16:
        return b"M" + struct.pack("<H", value)
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _tuple(values: tuple[int, ...]) -> bytes:
    if not values:
        return b")"
    body = b"".join(map(_int, values))
    if len(values) <= 3:
        return body + (b"\x85", b"\x86", b"\x87")[len(values) - 1]
    return b"(" + body + b"t"
