"""What the torch tests share: a plain engine for layouts, and zips and pickles made by hand."""

from __future__ import annotations

import pickle
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from swavg.formats.base import Checkpoint, Layout, Task, Tensor
from swavg.formats.read import read_rows

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint16, torch.uint32, torch.uint64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.complex32, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
]  # fmt: skip


def of_bytes(dtype: torch.dtype, numel: int) -> torch.Tensor:
    """A tensor of ``numel`` elements with known bytes: 0 and 1 for bool, else counting up."""
    size = torch.empty(0, dtype=dtype).element_size()
    data = bytearray(i % (2 if dtype == torch.bool else 100) for i in range(numel * size))
    return torch.frombuffer(data, dtype=dtype) if numel else torch.empty(0, dtype=dtype)


def raw(tensor: torch.Tensor) -> bytes:
    """The row-major bytes of ``tensor``."""
    flat = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
    return bytes(flat.reshape(-1).view(torch.uint8).numpy()) if flat.numel() else b""


def extent_bytes(path: str, tensor: Tensor) -> bytes:
    """The row-major bytes of a tensor in the file ``path``, as words of any dtype."""
    extent, spec = tensor.extent, tensor.spec
    data = Path(path).read_bytes()[extent.offset : extent.offset + extent.nbytes]
    if extent.strides is None:
        return data
    words = np.frombuffer(data, np.dtype((np.void, spec.dtype.itemsize)))
    steps = tuple(step * spec.dtype.itemsize for step in extent.strides)
    return bytes(np.lib.stride_tricks.as_strided(words, spec.shape, steps).tobytes())


def assert_same(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    """The checkpoint has just the tensors that torch has: names in order, shapes, dtypes, bytes."""
    assert list(checkpoint.tensors) == list(expected)
    for name, tensor in expected.items():
        spec = checkpoint.tensors[name].spec
        assert (spec.shape, f"torch.{spec.dtype}") == (tuple(tensor.shape), str(tensor.dtype))
        assert extent_bytes(checkpoint.path, checkpoint.tensors[name]) == raw(tensor), name


def mean_tasks(checkpoints: Sequence[Checkpoint], template: int = -1) -> list[Task]:
    """One task per tensor of the template: the mean of floats, a copy of everything else."""
    last = range(len(checkpoints))[template]
    tasks = []
    for name, tensor in checkpoints[last].tensors.items():
        floating = tensor.spec.dtype.floating
        inputs = tuple(range(len(checkpoints))) if floating else (last,)
        tasks.append(
            Task(
                name,
                "average" if floating else "copy",
                tensor.spec.dtype,
                tensor.spec.shape,
                inputs,
                tuple(checkpoints[index].tensors[name] for index in inputs),
                (1 / len(inputs),) * len(inputs),
                True,
            )
        )
    return tasks


def copy_task(name: str, checkpoint: Checkpoint, source: str, index: int = 0) -> Task:
    """The bytes of ``source`` under another name."""
    tensor = checkpoint.tensors[source]
    return Task(name, "copy", tensor.spec.dtype, tensor.spec.shape, (index,), (tensor,))


def written(layout: Layout, checkpoints: Sequence[Checkpoint], step: int = 7) -> bytes:
    """The finished file: float64 means, in chunks of ``step`` bytes."""

    def chunks() -> Iterator[memoryview]:
        for task in layout.tasks:
            pairs = list(zip(task.inputs, task.sources, strict=True))
            if task.kind == "copy":
                ((index, source),) = pairs
                data = extent_bytes(checkpoints[index].path, source)
            else:
                arrays = [read_rows(checkpoints[index], source, ...) for index, source in pairs]
                wide = sum(array.astype(np.float64) for array in arrays) / len(arrays)
                data = wide.astype(task.dtype.numpy()).tobytes()
            for start in range(0, len(data), step):
                yield memoryview(data[start : start + step])

    whole = b"".join(bytes(buffer) for buffer in layout.frame(chunks()))
    assert len(whole) == layout.size
    return whole


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
