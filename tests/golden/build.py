"""Inputs of golden cases that are made when they are needed: safetensors files, byte for byte the
same on every machine. Nothing of swavg is used, nor any random generator but SHAKE-256."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from functools import cache

import ml_dtypes
import numpy as np

NUMPY = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "I32": "int32",
    "U32": "uint32", "I64": "int64", "U64": "uint64", "F16": "float16", "BF16": "bfloat16",
    "F32": "float32", "F64": "float64", "C64": "complex64", "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
FLOATS = ["F8_E5M2", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F16", "BF16", "F32", "F64", "C64"]
INTEGERS = ["BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64"]
PACKED = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
"""Bits of the floats that share bytes."""
# Pairs of a safetensors dtype and values.
Values = tuple[str, "np.ndarray | Sequence[float]"]


def dtype(code: str) -> np.dtype:
    name = NUMPY[code]
    return np.dtype(getattr(np, name, None) or getattr(ml_dtypes, name))


def noise(seed: str, count: int) -> np.ndarray:
    """``count`` words of 64 bits."""
    return np.frombuffer(hashlib.shake_256(seed.encode()).digest(8 * count), "<u8")


def reals(seed: str, count: int) -> np.ndarray:
    """Float64 of both signs, from about 2^-10 to 8 in magnitude."""
    words = noise(seed, count)
    return ((words >> 11) / 2.0**52 - 1) * 2.0 ** ((words & 7).astype(np.int64) - 4)


def raw(code: str, shape: Sequence[int], seed: str) -> bytes:
    """The bytes of a tensor of finite values of any dtype."""
    count = int(np.prod(shape, dtype=np.int64))
    if code in PACKED:
        # Every pattern of bits is a number.
        return noise(seed, count).tobytes()[: count * PACKED[code] // 8]
    if code == "F8_E8M0":
        return bytes(120 + byte % 16 for byte in noise(seed, count).tobytes()[:count])
    if code == "BOOL":
        return bytes(byte & 1 for byte in noise(seed, count).tobytes()[:count])
    if code in INTEGERS:
        return noise(seed, count).tobytes()[: count * dtype(code).itemsize]
    if code == "C64":
        return reals(seed, 2 * count).astype(np.float32).tobytes()
    return reals(seed, count).astype(dtype(code)).tobytes()


def file(
    tensors: Mapping[str, tuple[str, Sequence[int], bytes]],
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """A safetensors file of tensors given as dtype, shape and bytes, in their order."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    position = 0
    for name, (code, shape, data) in tensors.items():
        end = position + len(data)
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(data for _, _, data in tensors.values())
    return struct.pack("<Q", len(text)) + text + data


def of(metadata: Mapping[str, str] | None = None, /, **tensors: Values) -> bytes:
    """A file of tensors of given values; ``__`` in a name stands for a dot."""
    arrays = {
        name.replace("__", "."): (code, np.asarray(values).astype(dtype(code)))
        for name, (code, values) in tensors.items()
    }
    return file({n: (c, a.shape, a.tobytes()) for n, (c, a) in arrays.items()}, metadata)


@cache
def dtype_file(code: str, seed: str) -> bytes:
    """A matrix, a vector, an empty tensor and, where bytes allow it, a scalar of one dtype."""
    shapes: dict[str, tuple[int, ...]] = {"m": (6, 8), "v": (20,), "e": (0, 3)}
    if code not in PACKED:
        shapes["s"] = ()
    return file({n: (code, s, raw(code, s, f"{code} {seed} {n}")) for n, s in shapes.items()})


@cache
def net(
    seed: str, code: str = "F32", metadata: str = "", *, plus: str = "", prefix: str = ""
) -> bytes:
    """A small network: two layers and a counter; ``plus`` names a further vector, ``metadata`` is
    JSON."""
    shapes = {"body.weight": (7, 5), "body.bias": (7,), "head.weight": (3, 7)}
    if plus:
        shapes[plus] = (4,)
    tensors = {}
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        # Checkpoints of one run: they have most of their values in common.
        values = reals(f"net {name}", count) + reals(f"net {seed} {name}", count) / 8
        tensors[name] = (code, shape, values.astype(dtype(code)).tobytes())
    tensors["steps"] = ("I64", (), noise(seed, 1).tobytes()[:1] + bytes(7))
    found = {prefix + name: tensor for name, tensor in sorted(tensors.items())}
    return file(found, json.loads(metadata) if metadata else None)


@cache
def large(seed: str) -> bytes:
    """4.4 MB in 40 tensors of bfloat16 and float32, some tiny: several chunks and runs."""
    tensors = {}
    values = reals("large", 60_961) + reals(f"large {seed}", 60_961) / 8
    for index in range(40):
        code = "F32" if index % 3 == 0 else "BF16"
        shape = ((3,), (257, 200), (1000, 60), (60_961,), (64, 520))[index % 5]
        count = int(np.prod(shape))
        turned = np.roll(values, 1009 * index)[:count]
        tensors[f"layers.{index}.weight"] = (code, shape, turned.astype(dtype(code)).tobytes())
    return file(tensors)


@cache
def single(seed: str, code: str) -> bytes:
    """One tensor of 1.2 M elements: more than one sample of distances."""
    values = np.resize(reals(f"single {seed}", 60_000), (1100, 1091))
    return file({"w": (code, values.shape, values.astype(dtype(code)).tobytes())})
