"""Averages that other libraries kept, by the names of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from swavg.errors import RequestError
from swavg.training.wrapped import plain_names, unwrap

_PREFIXES = ("module.", "ema_model.", "_orig_mod.")
_COUNTS = ("n_averaged", "num_updates", "optimization_step", "step")


def count_in(state: Mapping[str, Any], *, needed: bool) -> int:
    """How many updates the averages of a state dict have seen. If it does not say it is 0, or
    RequestError where a decay ``needed`` it: at the start of a schedule they would be forgotten."""
    for name in _COUNTS:
        # torch_ema has None where its decay does not depend on it.
        if state.get(name) is not None:
            return int(state[name])
    if needed:
        raise RequestError(
            "These averages do not say how many updates made them, and the decay depends on it: a"
            " warm-up would start again, and forget them.",
            hint="Give num_updates=..., or a decay that is a number, without warmup.",
        )
    return 0


def averages_in(state: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """The averages of a state dict by the plain names of ``model``.

    ``state`` is that of torch's ``AveragedModel``, timm's ``ModelEmaV3`` (``module.``),
    ema-pytorch's ``EMA`` (``ema_model.``) or torch_ema's ``ExponentialMovingAverage``
    (``shadow_params``, in the order of the parameters), or a plain one. Raises RequestError if it
    holds none.
    """
    if not isinstance(state, Mapping):
        raise RequestError(
            f"Averages are taken from a state dict, not from {type(state).__name__}.",
            hint="Give its state_dict().",
        )
    if "shadow_params" in state:
        return _in_order(list(state["shadow_params"]), model)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    names = plain_names(model)
    # A child may be called `module`: the names that fit best, and of two as good the longer ones.
    fitting = max(_with_fewer_prefixes(tensors), key=lambda each: len(names.keys() & each.keys()))
    found = {names[name]: value for name, value in fitting.items() if name in names}
    if not found:
        shown = ", ".join(map(repr, [*state][:3]))
        inside = [name for name, value in state.items() if isinstance(value, Mapping)]
        within = next((f" It may be state[{name!r}]." for name in inside if "ema" in str(name)), "")
        raise RequestError(
            f"This state holds no averages of the model: its names are {shown}.",
            hint=f"Give what state_dict() of the average returned.{within}",
        )
    return found


def _with_fewer_prefixes(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """``tensors`` as they are named, and those under a prefix without it, again and again."""
    yield tensors
    for prefix in _PREFIXES:
        inner = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
        if inner:
            yield from _with_fewer_prefixes(inner)


def _in_order(values: list[Tensor], model: nn.Module) -> dict[str, Tensor]:
    names = plain_names(model)
    every = [(names.get(name, name), p) for name, p in unwrap(model).named_parameters()]
    trained = [(name, p) for name, p in every if p.requires_grad]
    for known in (every, trained):
        if [p.shape for _, p in known] == [value.shape for value in values]:
            return {name: value for (name, _), value in zip(known, values, strict=True)}
    raise RequestError(
        f"The state has {len(values)} averages, which are not those of the model's"
        f" {len(every)} parameters in their order.",
        hint="Build the model as it was when the average was made.",
    )
