"""The functions and classes that torch would run to load a pickle; here nothing is run."""

from __future__ import annotations

import re
from collections.abc import Iterable

from swavg.formats.torch.objects import Global

# A pickle may name any number, of any length.
_MOST = 1000
_LONGEST = 200

# What torch.load takes with weights_only=True, its default: torch/_weights_only_unpickler.py.
_USUAL = {
    "torch._utils": {
        "_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_qtensor",
        "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_sparse_tensor",
        "_rebuild_meta_tensor_no_storage", "_rebuild_nested_tensor",
        "_rebuild_wrapper_subclass", "_rebuild_device_tensor_from_numpy",
        "_rebuild_device_tensor_from_cpu_tensor",
    },
    "torch._tensor": {"_rebuild_from_type_v2"},
    "torch.nn.parameter": {"Parameter"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "Tensor", "device"},
    "collections": {"OrderedDict", "Counter"},
    "_codecs": {"encode"},
    "builtins": {"bytearray", "set", "complex"},
}  # fmt: skip
# Storages, types of tensors, dtypes and schemes of quantization are only pointed at.
_module = re.compile(r"torch(\.cuda|\.sparse|\.cuda\.sparse|\.storage)?").fullmatch
_kind = re.compile(
    r"[A-Za-z0-9]*Storage|[A-Z][A-Za-z0-9]+Tensor"
    r"|(u?int|b?float|complex|qu?int|bits)\d\w*|bool|per_(tensor|channel)_\w+"
).fullmatch


def callables(named: Iterable[Global]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of the names in a pickle those that torch.load runs by default, and the foreign ones, which
    it imports and runs only where everything is trusted; so many of each, sorted."""
    usual: set[str] = set()
    foreign: set[str] = set()
    for each in named:
        if _module(each.module) and _kind(each.name):
            continue
        kind = usual if each.name in _USUAL.get(each.module, ()) else foreign
        kind.add(f"{each.module}.{each.name}"[:_LONGEST])
    return tuple(sorted(usual)[:_MOST]), tuple(sorted(foreign)[:_MOST])
