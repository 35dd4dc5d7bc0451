"""The torch kernel, for CUDA; on ``cpu`` it serves as a second opinion in tests.

The same steps as the NumPy kernel, each a separate operation, so that the bits agree:
multiplications and additions are never fused, and the mean divides by a tensor, since torch's
CUDA division by a Python number multiplies by the reciprocal. Reading into pinned memory, copying
and computing overlap: each worker has a stream and two staging buffers of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from swavg.dtypes import DType
from swavg.engine.kernels.base import Arithmetic, ReadChunk, Use, uses
from swavg.engine.kernels.floats import limits
from swavg.engine.kernels.tables import table
from swavg.errors import MissingDependencyError, RequestError

try:
    import torch
except ImportError as error:
    raise MissingDependencyError(
        "A device other than cpu needs PyTorch, which is not installed.",
        hint="Install it with: pip install torch.",
    ) from error

_NATIVE = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_RESULT_SIZE = 8


def kernel_bytes(elements: int, input_size: int, sum_size: int, rows: int) -> int:
    """Bytes of host memory that a :class:`TorchKernel` of these arguments takes.

    The device holds, of each element: two inputs, a sum per row, a term, its product, and what
    rounding takes on the way.
    """
    return elements * (2 * input_size + _RESULT_SIZE)


def check_device(name: str) -> torch.device:
    """The torch device ``name``; RequestError if this machine has none."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RequestError(f"'{name}' is no device.", hint="Use cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RequestError(
            f"device={name}: torch {torch.__version__} sees no CUDA device.",
            hint="The CPU gives the same bytes: leave device= out.",
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RequestError(
            f"device={name}: there are {torch.cuda.device_count()} CUDA devices, from cuda:0."
        )
    return device


class TorchKernel:
    """Weighted sums with torch on ``device``, for blocks of up to ``elements`` elements."""

    def __init__(
        self, elements: int, input_size: int, sum_size: int, rows: int, device: str = "cuda"
    ) -> None:
        self._device = check_device(device)
        self._cuda = self._device.type == "cuda"
        self._stream = (
            torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            if self._cuda
            else None
        )
        self._staging = [self._host(elements * input_size) for _ in range(2)]
        self._result = self._host(elements * _RESULT_SIZE)
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._tables: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def _host(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._cuda)

    @torch.no_grad()
    def weighted_sums(
        self, arithmetic: Arithmetic, count: int, read: ReadChunk, outs: Sequence[memoryview]
    ) -> list[bool]:
        dtype = _NATIVE[arithmetic.accumulator]
        totals: dict[int, torch.Tensor] = {}
        finite = []
        with self._on_stream():
            for index, (source, found) in enumerate(
                zip(arithmetic.inputs, uses(arithmetic), strict=True)
            ):
                term = self._widen(self._load(index, source, count, read), source).to(dtype)
                for use in found:
                    totals[use.row] = _added(totals.get(use.row), term, use)
            for row, (terms, out) in enumerate(zip(arithmetic.rows, outs, strict=True)):
                total = totals.pop(row)
                if terms.uniform:
                    number = len(terms.positions)
                    total = total.div_(torch.tensor(number, dtype=dtype, device=self._device))
                rounded, good = self._narrow(total, arithmetic.output)
                self._store(rounded, out)
                finite.append(bool(good.item()))
        return finite

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        if self._stream is None:
            yield
        else:
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                yield

    def _load(self, index: int, source: DType, count: int, read: ReadChunk) -> torch.Tensor:
        slot = index % 2
        copied = self._copied[slot]
        if copied is not None:
            copied.synchronize()
        host = self._staging[slot][: source.nbytes(count)]
        read(index, host.numpy().data)
        if not self._cuda:
            return host
        device = host.to(self._device, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(self._stream)
        self._copied[slot] = copied
        return device

    def _table(self, dtype: DType) -> tuple[torch.Tensor, torch.Tensor]:
        if dtype.name not in self._tables:
            codes = table(dtype)
            self._tables[dtype.name] = (
                torch.from_numpy(codes.widen).to(self._device),
                torch.from_numpy(codes.round).to(self._device),
            )
        return self._tables[dtype.name]

    def _widen(self, raw: torch.Tensor, dtype: DType) -> torch.Tensor:
        if dtype.name in _NATIVE:
            return raw.view(_NATIVE[dtype.name])
        return self._table(dtype)[0][raw.int()]

    def _narrow(self, total: torch.Tensor, dtype: DType) -> tuple[torch.Tensor, torch.Tensor]:
        """The rounded values, and whether all are finite."""
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

    def _store(self, rounded: torch.Tensor, out: memoryview) -> None:
        host = self._result[: rounded.numel() * rounded.element_size()]
        host.copy_(rounded.view(torch.uint8), non_blocking=self._cuda)
        if self._stream is not None:
            self._stream.synchronize()
        np.frombuffer(out, np.uint8)[...] = host.numpy()

    def close(self) -> None:
        self._staging = []
        self._result = torch.empty(0, dtype=torch.uint8)
        self._tables = {}


def _added(total: torch.Tensor | None, term: torch.Tensor, use: Use) -> torch.Tensor:
    """The sum of a row with one more term."""
    if use.weight is not None:
        # The weight is rounded to the accumulator; multiplying by it as a Python number is exact.
        term = term * torch.tensor(use.weight, dtype=torch.float64).to(term.dtype).item()
    elif total is None:
        # The term may lie in the staging buffer, and other rows take it too.
        return term.clone()
    return term if total is None else total.add_(term)


def _round_to_odd(wide: torch.Tensor) -> torch.Tensor:
    narrow = wide.float()
    back = narrow.double()
    bits = narrow.view(torch.int32)
    away = (back != wide) & (bits & 1 == 0) & (wide == wide)
    step = torch.where(back.abs() < wide.abs(), 1, -1).int()
    return (bits + torch.where(away, step, 0).int()).view(torch.float32)


__all__ = ["TorchKernel", "check_device", "kernel_bytes"]
