"""Tensors that exchange their contents, in place and safe to break off."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from swavg.training.roster import Slot
from swavg.training.wrapped import local

Stage = Literal["before", "copied", "done", "returning", "returned", "over"]


class Exchange:
    """``value``, of a model, takes the contents of ``average`` and later gets its own back.

    With one dtype the two trade places, and besides them only a copy of this tensor is held for a
    moment; what is written into ``value`` in between stays with ``average``. Otherwise ``average``,
    the wider, stays as it is and a copy of ``value`` is kept beside it; what is written is taken
    over only with ``keep``. After an interrupt anywhere, :meth:`back`, which may itself be called
    again, sets both right.
    """

    __slots__ = ("_keep", "_spare", "_stage", "_trade", "average", "value")

    def __init__(self, value: Tensor, average: Tensor, *, keep: bool) -> None:
        self.value = value
        self.average = average
        self._keep = keep
        self._trade = value.dtype == average.dtype
        self._stage: Stage = "before"
        self._spare: Tensor | None = None

    @property
    def shown(self) -> Tensor:
        """Where the averaged values are now."""
        return self.value if self._stage == "done" else self.average

    def forth(self) -> None:
        self._spare = self.value.to(self.average.device, copy=True)
        self.value.copy_(self.average)
        self._stage = "copied"
        if self._trade:
            self.average.copy_(self._spare)
            self._stage, self._spare = "done", None

    def adopt(self, written: Tensor) -> None:
        """Take ``written`` for what was written into ``value`` meanwhile."""
        if self._stage in ("copied", "done") and not torch.equal(
            written, self.value.to(written.device, written.dtype)
        ):
            self.value.copy_(written)

    def back(self) -> None:
        # Each stage is left only when its copy is whole, and each copy may be made twice.
        if self._stage == "done":
            self._spare = self.value.to(self.average.device, copy=True)
            self._stage = "returning"
        if self._stage == "returning":
            self.value.copy_(self.average)
            self._stage = "returned"
        if self._stage == "returned":
            self.average.copy_(self._needed())
        if self._stage == "copied":
            if self._trade or (self._keep and self._written()):
                self.average.copy_(self.value)
            self._stage = "before"
        if self._stage == "before" and self._spare is not None:
            self.value.copy_(self._spare)
        self._stage = "over"
        self._spare = None

    def _written(self) -> bool:
        return not torch.equal(self.value, self.average.to(self.value.device, self.value.dtype))

    def _needed(self) -> Tensor:
        assert self._spare is not None
        return self._spare


class Exchanges:
    """The exchanges of a model's places with their averages; :meth:`back` is for all of them.

    In between the model may be moved, converted or given other tensors, as by ``model.cpu()`` or
    ``load_state_dict(assign=True)``: what is in a place at the end gets the place's own value.
    """

    def __init__(self) -> None:
        self._made: list[tuple[Slot, Exchange]] = []

    def __bool__(self) -> bool:
        return bool(self._made)

    def shown(self) -> dict[int, Tensor]:
        """Where the averaged values are now, by the id of the average."""
        return {id(exchange.average): exchange.shown for _, exchange in self._made}

    def forth(self, slot: Slot, value: Tensor, average: Tensor) -> None:
        """Show ``average`` in ``slot``, whose memory is ``value``."""
        exchange = Exchange(value, average, keep=slot.is_buffer)
        self._made.append((slot, exchange))
        exchange.forth()

    def back(self) -> None:
        """Give every place its own value. After an interrupt it may be called again."""
        # The last first: so tensors that share memory end as they were.
        for slot, exchange in reversed(self._made):
            if slot.is_buffer and (other := _other(slot, exchange.value)) is not None:
                exchange.adopt(other)
            exchange.back()
        for slot, exchange in self._made:
            if (other := _other(slot, exchange.value)) is not None:
                other.copy_(exchange.value)
            elif slot.is_buffer and _unlike(slot, exchange.value):
                slot.owner[slot.key] = exchange.value
        self._made.clear()


def _unlike(slot: Slot, value: Tensor) -> bool:
    """True if what is in ``slot`` cannot take ``value``."""
    tensor = slot.tensor()
    return tensor is None or local(tensor).shape != value.shape


def _other(slot: Slot, value: Tensor) -> Tensor | None:
    """What is in ``slot`` if it has other memory than ``value``, and the same shape."""
    tensor = slot.tensor()
    if tensor is None or tensor.is_meta or value.numel() == 0:
        return None
    now = local(tensor)
    if now.shape != value.shape:
        return None
    same = now.device == value.device and now.data_ptr() == value.data_ptr()
    return None if same and now.dtype == value.dtype else now
