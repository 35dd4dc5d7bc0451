"""The calls of a torch pickle that stand for tensors and dictionaries."""

from __future__ import annotations

import pickle
from contextlib import suppress
from itertools import islice

from swavg.dtypes import BY_NAME
from swavg.formats.torch.objects import (
    Builder,
    Global,
    Opaque,
    PickledBytes,
    Refused,
    Storage,
    View,
    dict_key,
)

# No function that is known here takes more.
_MAX_ARGUMENTS = 16
_MAX_METADATA = 16


def call(function: object, args: object) -> object:
    """What ``function(*args)`` stands for."""
    if not isinstance(function, (Global, Opaque)):
        raise pickle.UnpicklingError("calls something that is neither a class nor a function")
    if not isinstance(args, tuple):
        raise pickle.UnpicklingError("a call whose arguments are no tuple")
    if isinstance(function, Global) and function.build is not None:
        if len(args) > _MAX_ARGUMENTS:
            raise pickle.UnpicklingError(f"a call of {function.name} with {len(args):,} arguments")
        return function.build(*args)
    return Opaque(function, args)


def ordered(pairs: object = ()) -> dict[object, object]:
    """A dictionary of ``pairs``, which are a dictionary or a sequence of two each."""
    filled: dict[object, object] = {}
    if isinstance(pairs, dict):
        filled.update(pairs)
    elif isinstance(pairs, (list, tuple)):
        for key, value in pairs:
            filled[dict_key(key)] = value
    else:
        raise pickle.UnpicklingError("makes a dictionary of something that holds no pairs")
    return filled


def default(_: object = None, pairs: object = ()) -> dict[object, object]:
    return ordered(pairs)


_NO_STORAGE = Refused("a tensor whose bytes are not in a storage of this file")


def tensor(
    storage: object, offset: object, size: object, stride: object, *rest: object
) -> View | Refused:
    """A tensor of the dtype of its storage; ``rest`` are whether it requires a gradient, hooks, and
    metadata."""
    if not isinstance(storage, Storage):
        return _NO_STORAGE
    if storage.dtype is None:
        return Refused(f"a tensor of {storage.kind}, which holds no plain elements")
    return _without_operation(View(storage, storage.dtype, offset, size, stride), *rest[2:3])


def _tensor_v3(
    storage: object, offset: object, size: object, stride: object, *rest: object
) -> View | Refused:
    """A tensor of a dtype, which stands between hooks and metadata."""
    if not isinstance(storage, Storage):
        return _NO_STORAGE
    dtype = rest[2] if len(rest) > 2 else None
    name = dtype.name if isinstance(dtype, Global) else "no known dtype"
    known = BY_NAME.get(name)
    if known is None or known.bits % 8 or storage.itemsize is None:
        return Refused(f"a tensor of {name}, which swavg does not know")
    return _without_operation(View(storage, known, offset, size, stride), *rest[3:4])


def _without_operation(view: View, metadata: object = None) -> View | Refused:
    if isinstance(metadata, dict) and (len(metadata) > _MAX_METADATA or any(metadata.values())):
        flags = ", ".join(key[:20] for key in islice(metadata, 4) if isinstance(key, str))
        return Refused(f"a tensor with a lazy operation ({flags}) that is not in its bytes")
    return view


def _first(value: object = (), *_: object) -> object:
    return value


def _from_type(function: object, kind: object, args: object, *_: object) -> object:
    return call(function, args)


_ENCODE = Global("_codecs", "encode")


def _encoded(*args: object) -> object:
    """Bytes, as protocol 2 has them."""
    match args:
        case (str(text), "latin1"):
            with suppress(UnicodeEncodeError):
                return PickledBytes(text.encode("latin-1"))
    return Opaque(_ENCODE, args)


def _refused(what: str) -> Builder:
    return lambda *_: Refused(what)


BUILDERS: dict[tuple[str, str], Builder] = {
    ("torch._utils", "_rebuild_tensor"): tensor,
    ("torch._utils", "_rebuild_tensor_v2"): tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type"): _from_type,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("torch.tensor", "_rebuild_from_type"): _from_type,
    ("torch._utils", "_rebuild_sparse_tensor"): _refused("a sparse tensor"),
    ("torch._utils", "_rebuild_qtensor"): _refused("a quantized tensor"),
    ("torch._utils", "_rebuild_nested_tensor"): _refused("a nested tensor"),
    ("torch.nested._internal.nested_tensor", "_rebuild_njt"): _refused("a nested tensor"),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _refused("a meta tensor, without data"),
    ("torch._utils", "_rebuild_wrapper_subclass"): _refused(
        "a tensor subclass (a distributed or quantized tensor, say) without plain bytes"
    ),
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): _refused(
        "a tensor whose bytes are in the pickle"
    ),
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _refused("a device's own tensor"),
    ("torch._utils", "_rebuild_xla_tensor"): _refused("a tensor whose bytes are in the pickle"),
    ("torch", "Size"): _first,
    ("_codecs", "encode"): _encoded,
    ("collections", "OrderedDict"): ordered,
    ("collections", "defaultdict"): default,
}
