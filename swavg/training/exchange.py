"""Two tensors that exchange their contents, in place and safe to break off."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

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
