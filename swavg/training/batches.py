"""What is done with a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from swavg.errors import RequestError
from swavg.training.wrapped import unwrap

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
        signature = None if model is None else _signature(model)
        if signature is None or name not in signature.parameters:
            del inputs[name]
        return (), inputs, target
    if isinstance(batch, (tuple, list)):
        if not batch:
            raise RequestError("A batch is empty.", hint="It is (inputs..., target) or a mapping.")
        return (tuple(batch[:-1]), {}, batch[-1]) if len(batch) > 1 else (tuple(batch), {}, None)
    return (batch,), {}, None


def forward(model: nn.Module, batch: Any) -> Any:
    """What ``model`` returns for the inputs of ``batch`` (:func:`split`). RequestError if it does
    not take them, or if one of them would be taken for an optional argument: it may be a target."""
    args, kwargs, _ = split(batch, model)
    needed, most = _positional(model)
    if len(args) > max(1, needed) and most is not None:
        raise RequestError(
            f"A batch has {len(args)} items before the last, and {_call(model)} needs {needed}: is"
            " one of them a target?",
            hint=_SAY,
        )
    return _called(model, args, kwargs)


def forward_first(model: nn.Module, batch: Any) -> Any:
    """What ``model`` returns for the first item of a tuple or list, as torch's ``update_bn`` takes
    it, or the first ones if it needs more; for another batch as :func:`forward`."""
    if not isinstance(batch, (tuple, list)):
        return forward(model, batch)
    needed, _ = _positional(model)
    return _called(model, tuple(batch[: max(1, needed)]), {})


_SAY = (
    "Give batches as (inputs..., target) or as a mapping of the model's arguments. In Python, say"
    " what is done with others: forward=lambda model, batch: model(batch[0])."
)


def _call(model: nn.Module) -> str:
    return f"{type(unwrap(model)).__name__}.forward()"


def _called(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    try:
        if (signature := _signature(model)) is not None:
            signature.bind(*args, **kwargs)
    except TypeError as error:
        raise RequestError(
            f"{_call(model)} cannot be called with a batch: {error}.", hint=_SAY
        ) from None
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


def _signature(model: nn.Module) -> inspect.Signature | None:
    """What the model's forward takes; None if it does not say."""
    try:
        return inspect.signature(unwrap(model).forward)
    except (TypeError, ValueError):
        return None


def _positional(model: nn.Module) -> tuple[int, int | None]:
    """How many positional arguments the model's forward needs, and takes at most (None: any)."""
    if (signature := _signature(model)) is None:
        return 0, None
    found = signature.parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [each for each in found if each.kind in kinds]
    needed = sum(each.default is inspect.Parameter.empty for each in positional)
    any_number = not found or any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in found)
    return needed, None if any_number else len(positional)
