"""What the tests of torch files share: every dtype, and bytes to compare."""

from __future__ import annotations

import torch

from swavg.formats.checkpoint import Checkpoint
from swavg.storage.sources import Pool

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


def assert_same(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    """The checkpoint has just the tensors that torch has: names in order, shapes, dtypes, bytes."""
    assert list(checkpoint.tensors) == list(expected)
    with Pool() as pool:
        for name, tensor in expected.items():
            found = checkpoint.tensors[name]
            spec = found.spec
            assert (spec.shape, f"torch.{spec.dtype}") == (tuple(tensor.shape), str(tensor.dtype))
            data = bytearray(spec.nbytes)
            checkpoint.read_into(found, 0, spec.numel, memoryview(data), pool)
            assert data == raw(tensor), name
