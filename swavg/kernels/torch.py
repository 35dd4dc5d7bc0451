"""The torch kernel, for CUDA; on ``cpu`` it serves as a second opinion in tests.

The same steps as the NumPy kernel, each a separate operation, so that the bits agree:
multiplications and additions are never fused, and the mean divides by a tensor, since torch's
CUDA division by a Python number multiplies by the reciprocal. Reading into pinned memory, copying
and computing overlap: each worker has a stream and two staging buffers of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from swavg.dtypes import DType
from swavg.errors import MissingDependencyError, RequestError
from swavg.kernels.base import Arithmetic, ReadChunk
from swavg.kernels.floats import limits
from swavg.kernels.tables import table
from swavg.packing import pack_codes, unpack_codes

try:
    import torch
except ImportError as error:
    raise MissingDependencyError(
        "--device other than cpu needs PyTorch, which is not installed.",
        hint="Install it with: pip install 'swavg[torch]'.",
    ) from error

_NATIVE = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def check_device(name: str) -> torch.device:
    """The torch device ``name``; RequestError if this machine has none."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RequestError(f"'{name}' is no device.", hint="Use cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RequestError(
            f"--device {name}: torch {torch.__version__} sees no CUDA device.",
            hint="The CPU gives the same bytes: leave --device out.",
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RequestError(
            f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, from cuda:0."
        )
    return device


class TorchKernel:
    """Weighted sums with torch on ``device``, for chunks of up to ``elements`` elements."""

    def __init__(self, elements: int, itemsize: int = 8, device: str = "cuda") -> None:
        self._device = check_device(device)
        self._cuda = self._device.type == "cuda"
        self._stream = (
            torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            if self._cuda
            else None
        )
        self._staging = [
            torch.empty(elements * itemsize, dtype=torch.uint8, pin_memory=self._cuda)
            for _ in range(2)
        ]
        self._result = torch.empty(elements * 8, dtype=torch.uint8, pin_memory=self._cuda)
        self._copied: list[Any] = [None, None]
        self._tables: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def weighted_sum(
        self, arithmetic: Arithmetic, count: int, read: ReadChunk, out: memoryview
    ) -> bool:
        if self._stream is None:
            return self._weighted_sum(arithmetic, count, read, out)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            return self._weighted_sum(arithmetic, count, read, out)

    @torch.no_grad()
    def _weighted_sum(
        self, arithmetic: Arithmetic, count: int, read: ReadChunk, out: memoryview
    ) -> bool:
        dtype = _NATIVE[arithmetic.accumulator]
        total: torch.Tensor | None = None
        for index, (source, weight) in enumerate(
            zip(arithmetic.inputs, arithmetic.weights, strict=True)
        ):
            term = self._widen(self._load(index, source, count, read), source).to(dtype)
            if not arithmetic.uniform:
                term = term * torch.tensor(weight, dtype=torch.float64).to(dtype).item()
            total = term.clone() if total is None else total.add_(term)
        assert total is not None
        if arithmetic.uniform:
            divisor = torch.tensor(len(arithmetic.inputs), dtype=dtype, device=self._device)
            total = total / divisor
        rounded, finite = self._narrow(total, arithmetic.output)
        self._store(rounded, arithmetic.output, out)
        return bool(finite.item())

    def _load(self, index: int, source: DType, count: int, read: ReadChunk) -> torch.Tensor:
        slot = index % 2
        if self._copied[slot] is not None:
            self._copied[slot].synchronize()
        host = self._staging[slot][: source.nbytes(count)]
        read(index, host.numpy().data)
        if source.bits < 8:
            codes = unpack_codes(host.numpy(), source)
            return torch.from_numpy(codes).to(self._device)
        if not self._cuda:
            return host
        device = host.to(self._device, non_blocking=True)
        self._copied[slot] = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied[slot].record(self._stream)
        return device

    def _table(self, dtype: DType) -> tuple[torch.Tensor, torch.Tensor]:
        if dtype.name not in self._tables:
            found = table(dtype)
            self._tables[dtype.name] = (
                torch.from_numpy(found.widen).to(self._device),
                torch.from_numpy(found.round).to(self._device),
            )
        return self._tables[dtype.name]

    def _widen(self, raw: torch.Tensor, dtype: DType) -> torch.Tensor:
        if dtype.name in _NATIVE:
            return raw.view(_NATIVE[dtype.name])
        return self._table(dtype)[0][raw.int()]

    def _narrow(self, total: torch.Tensor, dtype: DType) -> tuple[torch.Tensor, torch.Tensor]:
        if dtype.name in ("float32", "float64"):
            rounded = total.to(_NATIVE[dtype.name])
            return rounded, torch.isfinite(rounded).all()
        if total.dtype == torch.float64:
            total = _round_to_odd(total)
        low, high = limits(dtype)
        finite = ((total < high) & (total > low)).all()
        if dtype.name in _NATIVE:
            return total.to(_NATIVE[dtype.name]), finite
        bits = total.view(torch.int32)
        keys = (bits >> 16 & 0xFFFF) | (bits & 0xFFFF != 0).int()
        return self._table(dtype)[1][keys], finite

    def _store(self, rounded: torch.Tensor, dtype: DType, out: memoryview) -> None:
        size = rounded.numel() * rounded.element_size()
        host = self._result[:size]
        host.copy_(rounded.view(torch.uint8) if rounded.numel() else host, non_blocking=self._cuda)
        if self._stream is not None:
            self._stream.synchronize()
        np.frombuffer(out, np.uint8)[...] = pack_codes(host.numpy(), dtype)

    def close(self) -> None:
        self._staging = []
        self._result = torch.empty(0, dtype=torch.uint8)
        self._tables = {}


def _round_to_odd(wide: torch.Tensor) -> torch.Tensor:
    narrow = wide.float()
    back = narrow.double()
    bits = narrow.view(torch.int32)
    away = (back != wide) & (bits & 1 == 0) & (wide == wide)
    step = torch.where(back.abs() < wide.abs(), 1, -1).int()
    return (bits + torch.where(away, step, 0).int()).view(torch.float32)


__all__ = ["TorchKernel", "check_device"]
