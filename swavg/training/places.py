"""What of a model is averaged: each parameter and persistent buffer once, found where it is now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import is_
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from swavg.errors import RequestError, some
from swavg.training.wrapped import (
    check_module,
    check_values,
    is_sharded,
    modules,
    plain_state,
    settle,
)

Kind = Literal["parameter", "statistics", "buffer", "own"]


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A place in a module that holds a parameter or buffer, under the first of its names.

    ``statistics`` are those of batch norm; ``own`` the vectors of spectral norm, which no average
    of others would replace. What ``renorms`` is written to by the module's own forward pass.
    """

    name: str
    owner: dict[str, Any]
    key: str
    kind: Kind
    renorms: bool = False

    @property
    def is_buffer(self) -> bool:
        return self.kind != "parameter"

    def tensor(self) -> Tensor | None:
        """What is there now; None where a buffer is not set."""
        found: Tensor | None = self.owner.get(self.key)
        return found


class Places:
    """The parameters and persistent buffers of ``model``, tied ones once, in ``all``.

    Buffers that are not in the state dict are not looked at.
    """

    def __init__(self, model: nn.Module) -> None:
        check_model(model)
        settle(model)
        self.model = model
        self.all: list[Place] = []
        self._aliases: list[tuple[Place, Place]] = []
        first: dict[int, Place] = {}
        for place in _places(model):
            tensor = place.tensor()
            if tensor is None:
                if place.is_buffer:
                    self.all.append(place)
                continue
            check_values(place.name, tensor)
            known = first.setdefault(id(tensor), place)
            if known is place:
                self.all.append(place)
            elif known.owner is not place.owner:
                self._aliases.append((place, known))
        distinct = {id(module): module for *_, module in modules(model)}.values()
        self._dicts: list[dict[str, Any]] = [
            each for m in distinct for each in (m._parameters, m._buffers, m._modules)
        ]
        self._keys = [(each, key) for each in self._dicts for key in each]
        self._values = [each[key] for each, key in self._keys]
        self._memory = self._addresses()

    def _addresses(self) -> list[int] | None:
        """Where the tensors' data lie; None if some say nothing of it."""
        tensors = [value for value in self._values if isinstance(value, Tensor)]
        if any(map(is_sharded, tensors)):
            return None
        return [tensor.data_ptr() * 2 + tensor.requires_grad for tensor in tensors]

    def follow(self) -> bool:
        """Look at the model again: whether any tensor, or its memory, is another than before.
        RequestError if parameters came, went, or are no longer tied."""
        settle(self.model)
        same = sum(map(len, self._dicts)) == len(self._keys) and all(
            map(is_, (each.get(key) for each, key in self._keys), self._values)
        )
        if not same:
            self._take(Places(self.model))
            return True
        memory, self._memory = self._memory, self._addresses()
        return memory is None or memory != self._memory

    def _take(self, now: Places) -> None:
        for alias, place in self._aliases:
            if alias.tensor() is not place.tensor() and alias.tensor() is not None:
                raise RequestError(
                    f"'{alias.name}' and '{place.name}' were one tensor and are two now.",
                    hint="Call refresh() to average both from here on.",
                )
        known, found = self._parameters(), now._parameters()
        facts = [
            f"{some(sorted(map(repr, names)), 5)} {what}"
            for names, what in ((found - known, "came"), (known - found, "went"))
            if names
        ]
        if facts:
            raise RequestError(
                f"The model is no longer the one that is averaged: {'; '.join(facts)}.",
                hint="Call refresh() to go on with it: what is new starts at its value of then.",
            )
        self.__dict__ = now.__dict__

    def _parameters(self) -> set[str]:
        return {place.name for place in self.all if not place.is_buffer}

    def state(self) -> dict[str, tuple[Any, Place | None]]:
        """The model's state dict by plain names, live tensors with their places. Tied names give
        the same tensor."""
        by_id = {id(place.tensor()): place for place in self.all}
        by_name = {place.name: place for place in self.all}
        by_name |= {alias.name: place for alias, place in self._aliases}
        found: dict[str, tuple[Any, Place | None]] = {}
        for name, value in plain_state(self.model, keep_vars=True).items():
            place = by_id.get(id(value))
            if isinstance(value, Tensor) and place is None and name in by_name:
                # The module's own way to save gives another tensor for what is here.
                here = by_name[name].tensor()
                alike = here is not None and here.shape == value.shape
                place = by_name[name] if alike and is_sharded(here) == is_sharded(value) else None
            found[name] = (value, place)
        return found


def _places(model: nn.Module) -> Iterator[Place]:
    """All of them, a tied one under each of its names, in the order of the state dict."""
    for _, prefix, module in modules(model):
        embeds = isinstance(module, nn.Embedding | nn.EmbeddingBag)
        renorms = embeds and module.max_norm is not None
        for key in module._parameters:
            yield Place(f"{prefix}{key}", module._parameters, key, "parameter", renorms)
        for key in module._buffers:
            if key not in module._non_persistent_buffers_set:
                yield Place(f"{prefix}{key}", module._buffers, key, _kind(module, key))


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and persistent buffers of a model: themselves, not copies, in the order of the
    state dict, a tied one under each of its names.

    Raises RequestError for a model whose parameters are hidden in flat ones (FSDP1).
    """
    # What FSDP2 has gathered for a forward pass would be thrown away after it.
    settle(model)
    found = ((place.name, place.tensor()) for place in _places(model))
    return {name: tensor for name, tensor in found if tensor is not None}


def _kind(module: nn.Module, key: str) -> Kind:
    if isinstance(module, _NormBase):
        return "statistics"
    parametrized = type(module).__name__ == "_SpectralNorm"
    if key.endswith(("_u", "_v")) and (parametrized or f"{key[:-2]}_orig" in module._parameters):
        return "own"
    return "buffer"


def check_model(model: object) -> nn.Module:
    """The model; RequestError for what is no module, or one whose tensors cannot be exchanged."""
    found = check_module(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise RequestError(
            "A TorchScript model keeps its weights where they cannot be exchanged.",
            hint="Average the module that it was made from.",
        )
    return found
