"""The tensors of a torch state dict, placed in the file: every view lies inside its storage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from swavg.dtypes import DType
from swavg.errors import InputError
from swavg.formats.torch.objects import Refused, Storage, View, is_count

# A view that repeats its elements may claim no more bytes than its storage has, or these.
_EXPANDED = 16 << 20
_MAX_DIMENSIONS = 32


class Placed(NamedTuple):
    """A tensor in the file: its hull is ``nbytes`` bytes at ``offset``. ``strides`` (elements per
    step of each dimension, 1 where the size is 1) is None for the row-major order."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    offset: int
    nbytes: int


def placed(
    path: str, views: Mapping[str, View | Refused], locate: Callable[[Storage], int]
) -> Iterator[Placed]:
    """The tensors of ``views``, in order; ``locate`` gives the file offset of a storage's first
    element. InputError if one is no plain tensor or reaches beyond its storage."""
    for name, view in views.items():
        if isinstance(view, Refused):
            raise InputError(path, f"'{name}' is {view.what}; swavg averages plain tensors only")
        yield _placed(path, name, view, locate(view.storage))


def _placed(path: str, name: str, view: View, start: int) -> Placed:
    shape, strides, offset, dtype = view.size, view.stride, view.offset, view.dtype
    if not (
        type(shape) is tuple
        and type(strides) is tuple
        and len(shape) == len(strides) <= _MAX_DIMENSIONS
        and type(offset) is int
        and all(map(is_count, (offset, *shape, *strides)))
    ):
        raise InputError(path, f"'{name}' has an impossible shape, stride or offset")
    numel = 1
    span = 0
    row_major = True
    for size, step in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1:
            row_major = row_major and step == numel
            span += (size - 1) * step
            numel *= size
    if numel == 0:
        return Placed(name, dtype, shape, None, start, 0)
    itemsize = dtype.bits // 8
    held = view.storage.numel * (view.storage.itemsize or 0)
    if (offset + span + 1) * itemsize > held:
        raise InputError(path, f"'{name}' reaches beyond its storage of {held:,} bytes")
    if numel * itemsize > held and numel * itemsize > _EXPANDED:
        raise InputError(
            path, f"'{name}' claims {numel * itemsize:,} bytes of a storage of {held:,} bytes"
        )
    normal = None
    if not row_major:
        normal = tuple(1 if size == 1 else step for size, step in zip(shape, strides, strict=True))
    return Placed(name, dtype, shape, normal, start + offset * itemsize, (span + 1) * itemsize)
