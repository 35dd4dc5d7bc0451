"""The header of an array in a .npy file: read without evaluating it, and written as NumPy does."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass

from swavg.dtypes import BY_NAME, DType
from swavg.errors import InputError
from swavg.formats.commands import FROM_VOID, with_paths
from swavg.formats.strides import is_row_major, row_major_strides
from swavg.formats.tensors import Shape

MAGIC = b"\x93NUMPY"
LIMIT = 10_000
"""Bytes of a header at most, as NumPy has it."""
_DIMENSIONS = 64
_ALIGNMENT = 64

_FIELDS = re.compile(
    rb"\{\s*'descr':\s*'([^'\\]*)',\s*'fortran_order':\s*(True|False),"
    rb"\s*'shape':\s*\(((?:\s*[0-9]{1,19}L?\s*(?:,|(?=\))))*)\s*\),?\s*\}\s*"
)
CODES = {
    "bool": "|b1", "int8": "|i1", "uint8": "|u1", "int16": "<i2", "uint16": "<u2", "int32": "<i4",
    "uint32": "<u4", "int64": "<i8", "uint64": "<u8", "float16": "<f2", "float32": "<f4",
    "float64": "<f8", "complex64": "<c8", "complex128": "<c16",
}  # fmt: skip
"""What NumPy calls a dtype; those that it lacks are not there."""
_BY_CODE = {code[1:]: BY_NAME[name] for name, code in CODES.items()}


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says. ``dtype`` is None for what holds no numbers: text, objects, records.
    ``strides`` is None for the row-major order; the data begin ``size`` bytes behind it."""

    dtype: DType | None
    shape: Shape
    strides: Shape | None
    size: int


def header_size(path: str, name: str, head: bytes) -> int:
    """The size of a header by its first 12 bytes. InputError if it is none."""
    if len(head) < 10 or not head.startswith(MAGIC) or head[6] not in (1, 2, 3):
        raise InputError(path, f"its '{name}' is no NumPy array")
    narrow = head[6] == 1
    size: int = struct.unpack_from("<H" if narrow else "<I", head.ljust(12, b"\0"), 8)[0]
    if size > LIMIT:
        raise InputError(path, f"the header of '{name}' has {size:,} bytes: at most {LIMIT:,}")
    return size + (10 if narrow else 12)


def parse(path: str, name: str, head: bytes) -> Header:
    """The header ``head``. InputError for what cannot be read as it is meant."""
    begin = 10 if head[6] == 1 else 12
    found = _FIELDS.fullmatch(head, begin)
    if found is None:
        if re.match(rb"\{\s*'descr':\s*\[", head[begin:]):
            return Header(None, (), None, len(head))
        raise InputError(path, f"the header of '{name}' is not as NumPy writes it")
    code = found[1].decode("latin1")
    if code[1:2] in ("O", "U", "S", "a", "M", "m"):
        return Header(None, (), None, len(head))
    dtype = _BY_CODE.get(code[1:])
    if dtype is None:
        raise _unknown(path, name, code)
    if code[0] not in "<|=" and dtype.bits > 8:
        raise InputError(
            path,
            f"'{name}' is big-endian ('{code}')",
            hint="Save it with array.astype(array.dtype.newbyteorder('<')).",
        )
    shape = tuple(map(int, re.findall(rb"[0-9]+", found[3])))
    if len(shape) > _DIMENSIONS or math.prod(filter(None, shape)) >= 2**63:
        raise InputError(path, f"'{name}' has an impossible shape")
    strides = _column_major(shape) if found[2] == b"True" else None
    return Header(dtype, shape, strides, len(head))


def _column_major(shape: Shape) -> Shape | None:
    """The strides of Fortran's order; None where that is the row-major one."""
    strides = row_major_strides(shape[::-1])[::-1]
    if 0 in shape or is_row_major(shape, strides):
        return None
    return tuple(1 if size == 1 else step for size, step in zip(shape, strides, strict=True))


def _unknown(path: str, name: str, code: str) -> InputError:
    if code[1:2] != "V":
        return InputError(path, f"'{name}' has the dtype '{code}', which swavg does not know")
    hint = None
    if code[1:] == "V2":
        hint = f"If it is bfloat16, save it as float32:\n{with_paths(FROM_VOID, path)}"
    return InputError(
        path,
        f"'{name}' has the dtype '{code}': NumPy does not write which one of ml_dtypes it was"
        " (bfloat16?)",
        hint=hint,
    )


def written(dtype: DType, shape: Shape, *, fortran: bool) -> bytes:
    """The header of an array, as NumPy writes it."""
    sizes = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
    code = CODES[dtype.name]
    text = f"{{'descr': '{code}', 'fortran_order': {fortran}, 'shape': ({sizes}), }}".encode()
    padding = -(10 + len(text) + 1) % _ALIGNMENT
    text += b" " * padding + b"\n"
    return MAGIC + b"\1\0" + struct.pack("<H", len(text)) + text
