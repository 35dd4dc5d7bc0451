"""What of a model is averaged: each parameter and persistent buffer once, found where it is now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from swavg.errors import MismatchError, RequestError
from swavg.training.wrapped import (
    check_module,
    check_shape,
    is_sharded,
    modules,
    plain_names,
    settle,
    unwrap,
)


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """A place in a module that holds a parameter or buffer, under the first of its names."""

    name: str
    owner: dict[str, Any]
    key: str
    is_buffer: bool

    def tensor(self) -> Tensor | None:
        """What is there now; None where a buffer is not set."""
        found: Tensor | None = self.owner.get(self.key)
        return found


class Roster:
    """The parameters and persistent buffers of ``model``, tied ones once.

    They are looked up anew each time: a module may replace its tensors (``buffer = ...``), and
    FSDP2 does. Buffers that are not in the state dict are not looked at.
    """

    def __init__(self, model: nn.Module) -> None:
        check_model(model)
        settle(model)
        self.model = model
        self.slots: list[Slot] = []
        self._aliases: list[tuple[Slot, Slot]] = []
        self._layout: list[tuple[nn.Module, tuple[Any, ...], list[str]]] = []
        seen_modules: set[int] = set()
        first: dict[int, Slot] = {}
        for prefix, module in modules(model):
            if id(module) not in seen_modules:
                seen_modules.add(id(module))
                children = tuple(module._modules.values())
                self._layout.append((module, children, _held(module)))
            for slot in _slots(prefix, module):
                tensor = slot.tensor()
                _check(slot, tensor)
                if tensor is None:
                    if slot.is_buffer:
                        self.slots.append(slot)
                elif id(tensor) in first:
                    if slot.owner is not first[id(tensor)].owner:
                        self._aliases.append((slot, first[id(tensor)]))
                else:
                    first[id(tensor)] = slot
                    self.slots.append(slot)

    def check(self) -> None:
        """Raise RequestError if modules or parameters came, went, or are no longer tied."""
        settle(self.model)
        for module, children, held in self._layout:
            if _held(module) != held or tuple(module._modules.values()) != children:
                raise self._changed()
        for alias, slot in self._aliases:
            if alias.tensor() is not slot.tensor():
                raise RequestError(
                    f"'{alias.name}' and '{slot.name}' were one tensor and are two now.",
                    hint="Call refresh() to average both from here on.",
                )

    def _changed(self) -> RequestError:
        now = {slot.name for slot in Roster(self.model).slots}
        known = {slot.name for slot in self.slots}
        facts = [
            f"{', '.join(shown(names))} {what}"
            for names, what in ((now - known, "came"), (known - now, "went"))
            if names
        ]
        said = "; ".join(facts) if facts else "modules were replaced"
        return RequestError(
            f"The model is no longer the one that is averaged: {said}.",
            hint="Call refresh() to go on with it: what is new starts at its value of then.",
        )

    def state(self) -> dict[str, tuple[Tensor, Slot | None]]:
        """The model's state dict by plain names, live tensors with their slots; values that are
        no tensors are left out. Tied names give the same tensor."""
        by_id = {id(slot.tensor()): slot for slot in self.slots}
        by_name = {slot.name: slot for slot in self.slots}
        by_name |= {alias.name: slot for alias, slot in self._aliases}
        names = plain_names(self.model)
        found: dict[str, tuple[Tensor, Slot | None]] = {}
        for raw, value in unwrap(self.model).state_dict(keep_vars=True).items():
            if isinstance(value, Tensor):
                name = names.get(raw, raw)
                slot = by_id.get(id(value))
                if slot is None and (named := by_name.get(name)) is not None:
                    # The module's own way to save gives another tensor for what is here.
                    here = named.tensor()
                    alike = here is not None and here.shape == value.shape
                    slot = named if alike and is_sharded(here) == is_sharded(value) else None
                found[name] = (value, slot)
        return found

    def refuse(self, given: Mapping[str, Tensor], own: Iterable[str]) -> None:
        """Raise MismatchError unless ``given`` has a tensor of the right shape for every name that
        is not in ``own``, and none for another."""
        here = {slot.name: tensor for slot in self.slots if (tensor := slot.tensor()) is not None}
        problems = []
        if lacking := set(here) - set(own) - set(given):
            problems.append(f"it lacks {', '.join(shown(lacking))}")
        if extra := set(given) - set(here):
            problems.append(f"the model has no {', '.join(shown(extra))}")
        for name in set(here) & set(given):
            if given[name].shape != here[name].shape:
                was, now = list(given[name].shape), list(here[name].shape)
                problems.append(f"'{name}' is {was} in it and {now} in the model")
        if problems:
            raise MismatchError(
                f"The state is not of this model: {'; '.join(sorted(problems)[:5])}.",
                hint="Build the model as it was when the state was saved.",
            )


def _slots(prefix: str, module: nn.Module) -> Iterable[Slot]:
    dot = f"{prefix}." if prefix else ""
    for key in module._parameters:
        yield Slot(f"{dot}{key}", module._parameters, key, False)
    for key in module._buffers:
        if key not in module._non_persistent_buffers_set:
            yield Slot(f"{dot}{key}", module._buffers, key, True)


def _held(module: nn.Module) -> list[str]:
    """The keys of the parameters that are set: a bias may be None, and come later."""
    return [key for key, tensor in module._parameters.items() if tensor is not None]


def check_model(model: object) -> None:
    """Raise RequestError for what is no module, or one whose tensors cannot be exchanged."""
    check_module(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise RequestError(
            "A TorchScript model keeps its weights where they cannot be exchanged.",
            hint="Average the module that it was made from.",
        )


def _check(slot: Slot, tensor: Tensor | None) -> None:
    if tensor is None:
        return
    check_shape(slot.name, tensor)
    if tensor.is_meta:
        raise RequestError(
            f"'{slot.name}' is on the meta device: it has no values.",
            hint="Give the model its weights first.",
        )


def shown(names: Iterable[str], most: int = 5) -> list[str]:
    """The first names, quoted, and how many more there are."""
    ordered = sorted(names)
    more = [f"{len(ordered) - most} more"] if len(ordered) > most else []
    return [f"'{name}'" for name in ordered[:most]] + more
