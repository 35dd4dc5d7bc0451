"""What the tests of reading torch files share: opening one whole, and files made by hand."""

from __future__ import annotations

import pickle
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from swavg.formats.blocks import Read
from swavg.formats.torch import LEGACY
from swavg.formats.torch.archive import read_archive, read_graph
from swavg.formats.torch.extras import Value, plain_values
from swavg.formats.torch.legacy import read_legacy
from swavg.formats.torch.state import State, find_state
from swavg.formats.torch.views import Placed, placed
from swavg.storage.pool import Pool
from swavg.storage.sources import LocalFile

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint16, torch.uint32, torch.uint64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.complex32, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
]  # fmt: skip


class Opened(NamedTuple):
    path: str
    tensors: dict[str, Placed]
    state: State
    values: Mapping[str, Value]


@contextmanager
def reading(path: str | Path) -> Iterator[tuple[Read, LocalFile]]:
    """What reads the file at ``path``, and the file."""
    file = LocalFile.find(str(path))
    with Pool() as pool:
        yield (lambda offset, size: pool.read(file, offset, size)), file


def opened(path: str | Path, key: str | None = None, *, legacy: bool | None = None) -> Opened:
    """The torch file at ``path``, all that can be read of it."""
    with reading(path) as (read, file):
        if legacy is None:
            legacy = LEGACY.recognises(bytes(read(0, min(64, file.size))))
        if legacy:
            graph, locate = read_legacy(read, file.name, file.size)
        else:
            archive = read_archive(read, file.name, file.size)
            graph = read_graph(read, archive)
            locate = archive.locate
        state = find_state(file.name, graph.top, graph.opcodes, key)
        tensors = {tensor.name: tensor for tensor in placed(file.name, state.views, locate)}
        values = plain_values(file.name, graph.top, locate, state=state.node)
    return Opened(file.name, tensors, state, values)


def of_bytes(dtype: torch.dtype, numel: int) -> torch.Tensor:
    """A tensor of ``numel`` elements with known bytes: 0 and 1 for bool, else counting up."""
    size = torch.empty(0, dtype=dtype).element_size()
    data = bytearray(i % (2 if dtype == torch.bool else 100) for i in range(numel * size))
    return torch.frombuffer(data, dtype=dtype) if numel else torch.empty(0, dtype=dtype)


def raw(tensor: torch.Tensor) -> bytes:
    """The row-major bytes of ``tensor``."""
    flat = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
    return bytes(flat.reshape(-1).view(torch.uint8).numpy()) if flat.numel() else b""


def packed(path: str, tensor: Placed) -> bytes:
    """The row-major bytes of a tensor in the file ``path``, as words of any dtype."""
    data = Path(path).read_bytes()[tensor.offset : tensor.offset + tensor.nbytes]
    if tensor.strides is None:
        return data
    words = np.frombuffer(data, np.dtype((np.void, tensor.dtype.itemsize)))
    steps = tuple(step * tensor.dtype.itemsize for step in tensor.strides)
    return bytes(np.lib.stride_tricks.as_strided(words, tensor.shape, steps).tobytes())


def assert_same(found: Opened, expected: Mapping[str, torch.Tensor]) -> None:
    """The file has just the tensors that torch has: names in order, shapes, dtypes, bytes."""
    assert list(found.tensors) == list(expected)
    for name, tensor in expected.items():
        place = found.tensors[name]
        assert (place.shape, f"torch.{place.dtype}") == (tuple(tensor.shape), str(tensor.dtype))
        assert packed(found.path, place) == raw(tensor), name


def zipped(
    records: Sequence[tuple[str, bytes]],
    *,
    method: int = 0,
    flags: int = 0,
    local_name: str | None = None,
    prefix: bytes = b"",
    gap: bytes = b"",
    overlap: int = 0,
) -> bytes:
    """A zip of ``records`` with the given defects."""
    out, directory = prefix, b""
    base = len(prefix)
    for name, body in records:
        encoded, shown = name.encode(), (local_name or name).encode()
        facts = (20, flags, method, 0, 0x21, zlib.crc32(body), len(body), len(body))
        header = len(out) - base - overlap * (len(directory) > 0)
        out += struct.pack("<4s5H3I2H", b"PK\3\4", *facts, len(shown), 0) + shown + body + gap
        directory += struct.pack(
            "<4s6H3I5H2I", b"PK\1\2", 20, *facts, len(encoded), 0, 0, 0, 0, 0, header
        )
        directory += encoded
    offset, count = len(out) - base, len(records)
    return (
        out
        + directory
        + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(directory), offset, 0)
    )


def tensor_pickle(
    size: Any = (2,),
    stride: Any = (1,),
    offset: Any = 0,
    numel: int = 2,
    storage: str = "torch FloatStorage",
    function: str = "torch._utils _rebuild_tensor_v2",
) -> bytes:
    """A pickle of ``{"w": tensor}`` whose numbers may be anything."""

    def literal(value: Any) -> bytes:
        # Without protocol header and STOP; without memo, too.
        return pickle.dumps(value, 2)[2:-1]

    module, name = function.split()
    kind_module, kind = storage.split()
    return (
        b"\x80\x02}X\x01\0\0\0w"
        + f"c{module}\n{name}\n".encode()
        + b"((X\x07\0\0\0storage"
        + f"c{kind_module}\n{kind}\n".encode()
        + literal("0")
        + literal("cuda:7")
        + literal(numel)
        + b"tQ"
        + literal(offset)
        + literal(size)
        + literal(stride)
        + b"\x89ccollections\nOrderedDict\n)RtRs."
    )


def torch_zip(data_pkl: bytes, storage: bytes = bytes(8), **defects: Any) -> bytes:
    """A minimal torch zip around ``data_pkl``."""
    records = [("a/data.pkl", data_pkl), ("a/data/0", storage), ("a/version", b"3\n")]
    return zipped(records, **defects)
