"""Arrays of NumPy as torch has them, and back: every dtype, to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from swavg.dtypes import BY_NAME

Array = np.ndarray[Any, Any]


def tensors_of(arrays: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """As torch has them; an array of two names becomes one tensor."""
    made: dict[int, torch.Tensor] = {}
    for array in arrays.values():
        if id(array) not in made:
            made[id(array)] = tensor_of(array)
    return {name: made[id(array)] for name, array in arrays.items()}


def tensor_of(array: Array) -> torch.Tensor:
    dtype = getattr(torch, "bool" if array.dtype == np.bool_ else str(array.dtype))
    if array.dtype.kind in "biufc" and array.dtype.isbuiltin == 1:
        return torch.from_numpy(array)
    # Of ml_dtypes torch knows the bytes only.
    return torch.from_numpy(array.view(f"u{array.itemsize}")).view(dtype)


def array_of(tensor: torch.Tensor) -> Array:
    dtype = BY_NAME[str(tensor.dtype).removeprefix("torch.")].numpy()
    flat = tensor.contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return np.frombuffer(data, dtype).reshape(tuple(tensor.shape))
