"""Averages beside a model, tensor for tensor: moved by one fused call, shown in the model's place.

What :class:`~swavg.training.EMA`, :class:`~swavg.training.PowerEMA` and
:class:`~swavg.training.SWA` have in common.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from swavg.errors import RequestError
from swavg.training.exchange import Exchanges
from swavg.training.moving import Move, move_all
from swavg.training.roster import Roster, Slot
from swavg.training.wrapped import full, local, part_of, settle, sharded_as, unwrap

Buffers = Literal["copy", "average"]
Frozen = Literal["keep", "average"]


_in_models: WeakKeyDictionary[nn.Module, list[ReferenceType[Shadow]]] = WeakKeyDictionary()
"""The averages that a model has now, in the order in which they were applied."""


def forbid_others(model: nn.Module, act: str, own: Shadow | None = None) -> None:
    """Raise RequestError while the model has the values of another average than ``own``, which
    would be taken for its own weights."""
    others = [each for each in _applied_to(model) if each is not own]
    if others:
        raise RequestError(
            f"Another average is in the model now: cannot {act}.",
            hint="Restore that one first.",
        )


def _applied_to(model: nn.Module) -> list[Shadow]:
    found = (reference() for reference in _in_models.get(unwrap(model), ()))
    return [shadow for shadow in found if shadow is not None]


class Shadow:
    """One average of the parameters and persistent buffers of ``model``.

    Averages are float32 where the model is narrower. They lie on ``device``, or where the model's
    tensors are, whereto they follow them. Integer buffers and, with ``buffers="copy"``, all of
    them are copied. With ``frozen="keep"`` a parameter that has not required a gradient so far has
    no average but its own value.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device | str | None = None,
        buffers: Buffers = "copy",
        frozen: Frozen = "keep",
    ) -> None:
        _one_of("buffers", buffers, ("copy", "average"))
        _one_of("frozen", frozen, ("keep", "average"))
        self._device = None if device is None else torch.device(device)
        self._buffers = buffers
        self._frozen = frozen
        self._exchanges = Exchanges()
        self._averages: dict[Slot, Tensor] = {}
        self._roster = Roster(model)
        self.start()

    @property
    def applied(self) -> bool:
        """True while the model has the averaged values."""
        return bool(self._exchanges)

    @torch.no_grad()
    def start(self) -> None:
        """Start from the model as it is."""
        self.forbid_applied("start again")
        self._roster = Roster(self._roster.model)
        self._averages = {}
        for slot in self._roster.slots:
            self._begin(slot)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the model as it is now: what is new starts at its value, what went is forgotten."""
        self.forbid_applied("look at the model anew")
        known = {slot.name: average for slot, average in self._averages.items()}
        self._roster = Roster(self._roster.model)
        self._averages = {}
        for slot in self._roster.slots:
            value = slot.tensor()
            average = known.get(slot.name)
            if value is not None and average is not None and average.shape == local(value).shape:
                self._averages[slot] = average
            else:
                self._begin(slot)

    @torch.no_grad()
    def move(self, move: Move, *, chunked: bool = False) -> None:
        """``move`` the averages towards the model's values; copy what is copied.

        ``chunked``: in lists of limited size, for a ``move`` that needs memory of its own. Raises
        RequestError if the model is not the one it was.
        """
        self.forbid_applied("update")
        forbid_others(self._roster.model, "update")
        self._roster.check()
        moved: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
        copied: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
        for slot in self._roster.slots:
            tensor = slot.tensor()
            if tensor is None:
                continue
            average = self._averages.get(slot)
            if average is None:
                # Nothing to average with: unfrozen, or set, since the last time.
                self._begin(slot)
                continue
            value = local(tensor)
            average = self._fit(slot, average, value)
            groups = moved if self._is_averaged(slot, value) else copied
            key = (value.device, value.dtype, average.device, average.dtype)
            averages, values = groups.setdefault(key, ([], []))
            averages.append(average)
            values.append(value)
        for averages, values in copied.values():
            torch._foreach_copy_(averages, values)
        for averages, values in moved.values():
            move_all(move, averages, values, chunked=chunked)

    @torch.no_grad()
    def apply(self) -> None:
        """Give the model the averaged values, and keep its own for :meth:`restore`."""
        self.forbid_applied("apply the average again")
        self._roster.check()
        torch.clear_autocast_cache()
        try:
            for slot, average in list(self._averages.items()):
                tensor = slot.tensor()
                if tensor is not None:
                    value = local(tensor)
                    average = self._fit(slot, average, value)
                    self._exchanges.forth(slot, value, average)
        except BaseException:
            self._back()
            raise
        _in_models.setdefault(unwrap(self._roster.model), []).append(ref(self))

    @torch.no_grad()
    def restore(self) -> None:
        """Give the model its own values back, also where it was moved or given other tensors
        meanwhile. What was written to buffers stays with the average: batch-norm statistics that
        were recomputed."""
        if not self._exchanges:
            raise RequestError(
                "The model has its own weights: there is nothing to restore.",
                hint="Apply the average first, or use the with statement.",
            )
        later = _applied_to(self._roster.model)
        if self in later and later[-1] is not self:
            raise RequestError(
                "Another average was applied after this one.",
                hint="Restore that one first: the last in, the first out.",
            )
        self._back()

    def _back(self) -> None:
        torch.clear_autocast_cache()
        # FSDP2 may hold gathered parameters of an evaluation.
        settle(self._roster.model)
        self._exchanges.back()
        model = unwrap(self._roster.model)
        if left := [ref(each) for each in _applied_to(model) if each is not self]:
            _in_models[model] = left
        else:
            _in_models.pop(model, None)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """:meth:`apply`, and :meth:`restore` at the end of the block, whatever happens in it."""
        self.apply()
        try:
            yield
        finally:
            # By hand within the block is no mistake.
            if self.applied:
                self.restore()

    def averaged(self, dtype: Literal["model"] | None = None) -> dict[str, Tensor]:
        """The model's state dict by plain names with the averaged values, as copies.

        In the average's own dtype, or in the model's with ``dtype="model"``. Values that the state
        dict holds and nobody averages are the model's. Sharded tensors are gathered: a collective,
        and all ranks get the whole. Tied names share one tensor.
        """
        if dtype not in (None, "model"):
            raise RequestError(f"dtype is {dtype!r}; it is 'model' or None.")
        made: dict[int, Tensor] = {}
        found: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, part, value in self._parts():
                if id(value) not in made:
                    whole = full(part.to(value.dtype) if dtype == "model" else part, value)
                    made[id(value)] = whole.clone() if _shares(whole, part) else whole
                found[name] = made[id(value)]
        return found

    def views(self) -> dict[str, Tensor]:
        """:meth:`averaged` without copies and not gathered: to be saved now, tensor by tensor."""
        return {name: sharded_as(part, value) for name, part, value in self._parts()}

    def _parts(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, this rank's part of the averaged value, and the model's tensor."""
        self._roster.check()
        now = self._exchanges.shown()
        for name, (value, slot) in self._roster.state().items():
            average = None if slot is None else self._averages.get(slot)
            part = local(value) if average is None else now.get(id(average), average)
            yield name, part, value

    def state(self) -> dict[str, Any]:
        """What :meth:`load` takes: the averages by name (themselves, not copies, where they are
        whole), and the names of parameters without one."""
        self.forbid_applied("save the state")
        self._roster.check()
        averages, own = {}, []
        for slot in self._roster.slots:
            value = slot.tensor()
            average = self._averages.get(slot)
            if average is not None and value is not None:
                averages[slot.name] = full(average, value)
            elif value is not None:
                own.append(slot.name)
        return {"averages": averages, "own": own}

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        """Take the averages of :meth:`state`, bit for bit, wherever and in whichever dtype the
        model is. Raises MismatchError, with nothing changed, if names or shapes are others."""
        self.forbid_applied("load a state")
        self._roster.check()
        given: Mapping[str, Tensor] = state["averages"]
        self._roster.refuse(given, state["own"])
        averages: dict[Slot, Tensor] = {}
        for slot in self._roster.slots:
            value, whole = slot.tensor(), given.get(slot.name)
            if value is not None and whole is not None:
                part = part_of(whole, value)
                device = self._device or local(value).device
                dtype = torch.promote_types(part.dtype, self._dtype(slot, part))
                averages[slot] = _copy(part, device, dtype)
        self._averages = averages

    def forbid_applied(self, act: str) -> None:
        """Raise RequestError while the model has the averaged values."""
        if self._exchanges:
            raise RequestError(
                f"Cannot {act}: the model has the averaged weights now.",
                hint="Restore its own first: leave the with block, or call restore() or swap().",
            )

    def _begin(self, slot: Slot) -> None:
        tensor = slot.tensor()
        if tensor is None:
            return
        if not slot.is_buffer and self._frozen == "keep" and not tensor.requires_grad:
            return
        value = local(tensor)
        if slot.is_buffer and _overlaps(value):
            # An expanded constant: it cannot be written, and needs no copy.
            self._averages.pop(slot, None)
            return
        dtype = self._dtype(slot, value)
        self._averages[slot] = _copy(value, self._device or value.device, dtype)

    def _dtype(self, slot: Slot, value: Tensor) -> torch.dtype:
        if not self._is_averaged(slot, value):
            return value.dtype
        return torch.promote_types(value.dtype if value.itemsize > 1 else torch.float32,
                                   torch.float32)  # fmt: skip

    def _is_averaged(self, slot: Slot, value: Tensor) -> bool:
        numbers = value.is_floating_point() or value.is_complex()
        return numbers and (not slot.is_buffer or self._buffers == "average")

    def _fit(self, slot: Slot, average: Tensor, value: Tensor) -> Tensor:
        """The average of ``slot`` where it belongs and as wide as ``value``; RequestError if the
        shape is another or ``value`` has none."""
        if value.is_meta:
            raise RequestError(
                f"'{slot.name}' is on the meta device now: it has no values.",
                hint="Give the model its weights back; the average is kept.",
            )
        if average.shape != value.shape:
            if not slot.is_buffer:
                raise RequestError(
                    f"'{slot.name}' is {list(value.shape)} now; its average is"
                    f" {list(average.shape)}.",
                    hint="Call refresh() to go on with it, from its value of then.",
                )
            self._begin(slot)
        elif not torch.can_cast(value.dtype, average.dtype):
            # A counter that is no integer any more, and the like.
            self._begin(slot)
        elif (
            self._device is None and average.device != value.device
        ) or value.itemsize > average.itemsize:
            dtype = torch.promote_types(average.dtype, value.dtype)
            self._averages[slot] = _copy(average, self._device or value.device, dtype)
        return self._averages.get(slot, average)


def _copy(value: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    # No inference tensor, whatever the mode: that could not be written later.
    with torch.inference_mode(False):
        made = torch.empty_like(value, device=device, dtype=dtype, requires_grad=False)
        return made.copy_(value.detach())


def _overlaps(value: Tensor) -> bool:
    return any(
        step == 0 and size > 1 for step, size in zip(value.stride(), value.shape, strict=True)
    )


def _shares(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.numel() > 0 and a.data_ptr() == b.data_ptr())


def _one_of(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise RequestError(f"{what} is {value!r}; it is one of {', '.join(known)}.")
