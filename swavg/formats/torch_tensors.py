"""The tensors of a torch state dict, placed in the file: every view lies inside its storage."""

from __future__ import annotations

import math
from collections.abc import Callable

from swavg.errors import InputError
from swavg.formats.base import Extent, Tensor, TensorSpec
from swavg.formats.read import row_major_strides
from swavg.formats.torch_state import State
from swavg.formats.torch_values import Refused, Storage, View

# A view that repeats its elements may claim no more bytes than its storage has, or these.
_EXPANDED = 16 << 20
_MAX_DIMENSIONS = 32


def normal_strides(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...] | None:
    """``strides`` in the one form of equal views: None if row-major; 1 where the size is 1."""
    packed = row_major_strides(shape)
    if math.prod(shape) <= 1 or all(
        size == 1 or step == plain for size, step, plain in zip(shape, strides, packed, strict=True)
    ):
        return None
    return tuple(1 if size == 1 else step for size, step in zip(shape, strides, strict=True))


def tensors_of(path: str, state: State, place: Callable[[Storage], int]) -> dict[str, Tensor]:
    """The tensors of ``state``; ``place`` gives the file offset of a storage's first byte."""
    found = {}
    for name, view in state.views.items():
        if isinstance(view, Refused):
            raise InputError(path, f"'{name}' is {view.what}; swavg averages plain tensors only")
        found[name] = _placed(path, name, view, place(view.storage))
    return found


def _placed(path: str, name: str, view: View, start: int) -> Tensor:
    shape, strides, offset, dtype = view.size, view.stride, view.offset, view.dtype
    if (
        type(shape) is not tuple
        or type(strides) is not tuple
        or len(shape) != len(strides)
        or len(shape) > _MAX_DIMENSIONS
        or any(type(n) is not int or not 0 <= n < 1 << 62 for n in (*shape, *strides, offset))
    ):
        raise InputError(path, f"'{name}' has an impossible shape, stride or offset")
    numel, itemsize = math.prod(shape), dtype.itemsize
    spec = TensorSpec(name, dtype, shape)
    if numel == 0:
        return Tensor(spec, Extent(0, start, 0))
    hull = 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    storage = view.storage
    assert storage.itemsize is not None
    held = storage.numel * storage.itemsize
    if (offset + hull) * itemsize > held:
        raise InputError(path, f"'{name}' reaches beyond its storage of {held:,} bytes")
    if numel * itemsize > held and numel * itemsize > _EXPANDED:
        raise InputError(
            path, f"'{name}' claims {numel * itemsize:,} bytes of a storage of {held:,} bytes"
        )
    first = start + offset * itemsize
    return Tensor(spec, Extent(0, first, hull * itemsize, normal_strides(shape, strides)))
