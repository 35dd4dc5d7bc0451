"""What is done with a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from swavg.errors import RequestError

TARGETS = ("labels", "label", "targets", "target")
"""Keys of a batch that hold what is to be predicted."""


def split(
    batch: Any, model: nn.Module | None = None
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """A batch as positional inputs, keyword inputs and target (None where there is none).

    A tensor is the one input; a tuple or list holds the inputs and, last, the target (alone, an
    item is an input); a mapping holds keyword arguments, its target under one of :data:`TARGETS`.
    That stays among the keyword arguments only where ``model`` takes one of its name.
    """
    if isinstance(batch, Mapping):
        inputs = {str(name): value for name, value in batch.items()}
        name = next((name for name in TARGETS if name in inputs), None)
        if name is None:
            return (), inputs, None
        target = inputs[name]
        if model is None or name not in _parameters(model):
            del inputs[name]
        return (), inputs, target
    if isinstance(batch, (tuple, list)):
        items = list(batch)
        if not items:
            raise RequestError("A batch is empty.", hint="It is (inputs..., target) or a mapping.")
        return (tuple(items), {}, None) if len(items) == 1 else (tuple(items[:-1]), {}, items[-1])
    return (batch,), {}, None


def forward(model: nn.Module, batch: Any) -> Any:
    """What ``model`` returns for the inputs of ``batch`` (:func:`split`)."""
    args, kwargs, _ = split(batch, model)
    return model(*args, **kwargs)


def map_items(batch: Any, convert: Callable[[Any], Any]) -> Any:
    """``batch`` with ``convert`` called for each of its items, in whatever they are nested;
    mappings become dictionaries."""
    if isinstance(batch, Mapping):
        return {name: map_items(value, convert) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        sequence: Any = type(batch)
        values = [map_items(value, convert) for value in batch]
        return sequence(*values) if hasattr(sequence, "_fields") else sequence(values)
    return convert(batch)


def to_device(batch: Any, device: torch.device | str) -> Any:
    """``batch`` with its tensors on ``device``; mappings become dictionaries."""
    return map_items(batch, lambda item: item.to(device) if hasattr(item, "to") else item)


def examples(batch: Any) -> int | None:
    """The length of the first tensor of ``batch`` that has a dimension; None without one."""
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, (tuple, list)):
        return next((n for n in map(examples, batch) if n is not None), None)
    shape: Any = getattr(batch, "shape", ())
    return int(shape[0]) if len(shape) else None


def _parameters(model: nn.Module) -> Mapping[str, Any]:
    """Names that the model's forward takes, below compile and data-parallel wrappers."""
    inner: Any = model
    while (
        below := getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
    ) is not None:
        inner = below
    try:
        return inspect.signature(inner.forward).parameters
    except (TypeError, ValueError):
        return {}
