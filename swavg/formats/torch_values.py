"""What a torch pickle turns into: names, stand-ins, storages and strided views; nothing runs."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from swavg.dtypes import BY_NAME, DType


class Global:
    """The name of a class or function; nothing of that name is looked up."""

    __slots__ = ("build", "module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name
        self.build = _BUILDERS.get(f"{module}.{name}")


@dataclass(slots=True, eq=False, repr=False)
class Opaque:
    """What a call of anything unknown would have made: the called, arguments, state, contents."""

    of: Global | Opaque
    args: Any = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)
    pairs: dict[Any, Any] = field(default_factory=dict)

    def is_a(self, module: str, name: str) -> bool:
        return isinstance(self.of, Global) and (self.of.module, self.of.name) == (module, name)


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage by ``key``: ``numel`` elements of ``dtype`` (None: not averaged) of ``itemsize``
    bytes (None: unknown). A view of ``root_numel`` elements starts ``start`` elements in."""

    key: str
    kind: str
    dtype: DType | None
    itemsize: int | None
    numel: int
    root_numel: int
    start: int = 0


@dataclass(slots=True, eq=False, repr=False)
class View:
    """A strided tensor: ``offset`` and ``stride`` count elements of ``dtype`` in the storage.
    The numbers are the pickle's, not yet checked."""

    storage: Storage
    dtype: DType
    offset: Any
    size: Any
    stride: Any


@dataclass(slots=True, eq=False, repr=False)
class Refused:
    """A tensor that cannot be averaged; ``what`` reads after "is"."""

    what: str


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> View | Refused:
    if not isinstance(storage, Storage):
        return Refused("a tensor whose bytes are not in a storage of this file")
    if storage.dtype is None:
        return Refused(f"a tensor of {storage.kind}, which holds no plain elements")
    return _strided(
        storage, storage.dtype, offset, size, stride, rest[2] if len(rest) > 2 else None
    )


def _tensor_v3(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any = None,
    hooks: Any = None,
    dtype: Any = None,
    metadata: Any = None,
) -> View | Refused:
    if not isinstance(storage, Storage):
        return Refused("a tensor whose bytes are not in a storage of this file")
    name = dtype.name if isinstance(dtype, Global) else "no known dtype"
    if name not in BY_NAME:
        return Refused(f"a tensor of {name}, which swavg does not know")
    return _strided(storage, BY_NAME[name], offset, size, stride, metadata)


def _strided(
    storage: Storage, dtype: DType, offset: Any, size: Any, stride: Any, metadata: Any
) -> View | Refused:
    if isinstance(metadata, dict) and any(metadata.values()):
        flags = ", ".join(str(key)[:20] for key in list(metadata)[:4])
        return Refused(f"a tensor with a lazy operation ({flags}) that is not in its bytes")
    return View(storage, dtype, offset, size, stride)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _from_type(function: Any, kind: Any, args: Any, *_: Any) -> Any:
    return called(function, args)


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    if isinstance(pairs, dict):
        pairs = pairs.items()
    filled: dict[Any, Any] = {}
    for key, value in pairs:
        filled[dict_key(key)] = value
    return filled


def _default(factory: Any = None, pairs: Any = ()) -> dict[Any, Any]:
    return _ordered(pairs)


def _size(sizes: Any = ()) -> Any:
    return sizes


def _refused(what: str) -> Callable[..., Refused]:
    return lambda *_: Refused(what)


_BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type": _from_type,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.tensor._rebuild_from_type": _from_type,
    "torch._utils._rebuild_sparse_tensor": _refused("a sparse tensor"),
    "torch._utils._rebuild_qtensor": _refused("a quantized tensor"),
    "torch._utils._rebuild_nested_tensor": _refused("a nested tensor"),
    "torch.nested._internal.nested_tensor._rebuild_njt": _refused("a nested tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": _refused("a meta tensor, without data"),
    "torch._utils._rebuild_wrapper_subclass": _refused(
        "a tensor subclass (a distributed or quantized tensor, say) without plain bytes"
    ),
    "torch._utils._rebuild_device_tensor_from_numpy": _refused(
        "a tensor whose bytes are in the pickle"
    ),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _refused("a device's own tensor"),
    "torch._utils._rebuild_xla_tensor": _refused("a tensor whose bytes are in the pickle"),
    "torch.Size": _size,
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": _default,
}
# Their copies could multiply what the pickle holds.
COPYING = {_ordered, _default}


def called(function: Any, args: Any) -> Any:
    """What ``function(*args)`` stands for."""
    if not isinstance(function, (Global, Opaque)):
        raise pickle.UnpicklingError("calls something that is neither a class nor a function")
    if not isinstance(args, tuple):
        raise pickle.UnpicklingError("a call whose arguments are no tuple")
    if isinstance(function, Global) and function.build is not None:
        return function.build(*args)
    return Opaque(function, args)


def dict_key(key: Any) -> Any:
    """``key``, fit for a dict: hashing a tuple walks it whole, again and again, in C."""
    if type(key) is tuple:
        pending, seen = [key], 0
        while pending:
            for part in pending.pop():
                seen += 1
                if seen > 100:
                    raise pickle.UnpicklingError("a dictionary key of more than 100 parts")
                if type(part) is tuple:
                    pending.append(part)
    return key
