"""The only table of dtypes: names, sizes, and what the formats and libraries call them.

``bits`` is the size of one element; the sub-byte floats pack their elements without gaps, the
first element in the lowest bits. Nothing heavier than the standard library is imported here:
:meth:`DType.numpy` imports NumPy and ml_dtypes when it is called.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from swavg.errors import RequestError

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["float", "complex", "integer", "bool"]
Accumulator = Literal["float32", "float64"]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    ``name`` is torch's (and the one swavg shows). ``parts`` is 2 for complex types, whose real and
    imaginary parts are averaged as elements of type ``part``. ``accumulator`` is the dtype in which
    sums are taken by default; None for integers and bool, which are not averaged as floats.
    ``torch_storage`` is the class that a torch pickle names; None where torch writes the dtype
    itself beside an untyped storage.
    """

    name: str
    bits: int
    kind: Kind
    safetensors: str | None
    safetensors_rank: int
    numpy_name: str | None
    torch_storage: str | None
    accumulator: Accumulator | None
    part_name: str | None = None

    @property
    def itemsize(self) -> int:
        """Bytes of one element; raises ValueError for sub-byte types."""
        if self.bits % 8:
            raise ValueError(f"{self.name} has no whole number of bytes per element")
        return self.bits // 8

    @property
    def floating(self) -> bool:
        """True for real and complex floats: what is averaged."""
        return self.accumulator is not None

    @property
    def part(self) -> DType:
        """The real dtype of the parts: itself unless complex."""
        return self if self.part_name is None else BY_NAME[self.part_name]

    def nbytes(self, numel: int) -> int:
        """Bytes of ``numel`` packed elements; raises ValueError if that is no whole number."""
        bits = self.bits * numel
        if bits % 8:
            raise ValueError(f"{numel} elements of {self.name} do not fill whole bytes")
        return bits // 8

    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype (from ml_dtypes where NumPy has none of its own)."""
        if self.numpy_name is None:
            raise RequestError(f"NumPy has no dtype for {self.name}")
        return _numpy_dtype(self.numpy_name)

    def number(self, element: bytes | bytearray) -> int | float:
        """The value of one little-endian element, which is neither complex nor a bool."""
        import numpy as np

        value = np.frombuffer(element, self.numpy())[0]
        return float(value) if self.kind == "float" else int(value)

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[object, ...]:
        return (_by_name, (self.name,))


@functools.cache
def _numpy_dtype(name: str) -> np.dtype[Any]:
    import numpy as np

    if hasattr(np, name):
        found: np.dtype[Any] = np.dtype(getattr(np, name))
        return found
    import ml_dtypes

    found = np.dtype(getattr(ml_dtypes, name))
    return found


def _by_name(name: str) -> DType:
    return BY_NAME[name]


# In the order of the safetensors library's own ranking, which fixes the layout of a file.
_TABLE = (
    DType("bool", 8, "bool", "BOOL", 0, "bool_", "BoolStorage", None),
    DType("float4_e2m1fn", 4, "float", "F4", 1, "float4_e2m1fn", None, "float32"),
    DType("float6_e2m3fn", 6, "float", "F6_E2M3", 2, "float6_e2m3fn", None, "float32"),
    DType("float6_e3m2fn", 6, "float", "F6_E3M2", 3, "float6_e3m2fn", None, "float32"),
    DType("uint8", 8, "integer", "U8", 4, "uint8", "ByteStorage", None),
    DType("int8", 8, "integer", "I8", 5, "int8", "CharStorage", None),
    DType("float8_e5m2", 8, "float", "F8_E5M2", 6, "float8_e5m2", None, "float32"),
    DType("float8_e4m3fn", 8, "float", "F8_E4M3", 7, "float8_e4m3fn", None, "float32"),
    DType("float8_e8m0fnu", 8, "float", "F8_E8M0", 8, "float8_e8m0fnu", None, "float32"),
    DType("float8_e4m3fnuz", 8, "float", "F8_E4M3FNUZ", 9, "float8_e4m3fnuz", None, "float32"),
    DType("float8_e5m2fnuz", 8, "float", "F8_E5M2FNUZ", 10, "float8_e5m2fnuz", None, "float32"),
    DType("int16", 16, "integer", "I16", 11, "int16", "ShortStorage", None),
    DType("uint16", 16, "integer", "U16", 12, "uint16", None, None),
    DType("float16", 16, "float", "F16", 13, "float16", "HalfStorage", "float32"),
    DType("bfloat16", 16, "float", "BF16", 14, "bfloat16", "BFloat16Storage", "float32"),
    DType("int32", 32, "integer", "I32", 15, "int32", "IntStorage", None),
    DType("uint32", 32, "integer", "U32", 16, "uint32", None, None),
    DType("float32", 32, "float", "F32", 17, "float32", "FloatStorage", "float64"),
    DType(
        "complex64", 64, "complex", "C64", 18, "complex64", "ComplexFloatStorage", "float64",
        "float32",
    ),
    DType("float64", 64, "float", "F64", 19, "float64", "DoubleStorage", "float64"),
    DType("int64", 64, "integer", "I64", 20, "int64", "LongStorage", None),
    DType("uint64", 64, "integer", "U64", 21, "uint64", None, None),
    # In torch files only.
    DType("complex32", 32, "complex", None, 22, None, None, "float32", "float16"),
    DType(
        "complex128", 128, "complex", None, 23, "complex128", "ComplexDoubleStorage", "float64",
        "float64",
    ),
)  # fmt: skip

BY_NAME = {dtype.name: dtype for dtype in _TABLE}
BY_SAFETENSORS = {dtype.safetensors: dtype for dtype in _TABLE if dtype.safetensors is not None}
BY_TORCH_STORAGE = {
    dtype.torch_storage: dtype for dtype in _TABLE if dtype.torch_storage is not None
}
