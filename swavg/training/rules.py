"""Which of a model's tensors have an average beside them, where it lies and how wide it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

import torch
from torch import Tensor

from swavg.errors import RequestError
from swavg.training.places import Place
from swavg.training.wrapped import is_expanded, local

Buffers = Literal["copy", "average"]
Frozen = Literal["keep", "average"]


class Options(TypedDict, total=False):
    """Those of every average, as :class:`~swavg.training.EMA` explains them."""

    device: torch.device | str | None
    buffers: Buffers
    frozen: Frozen
    in_place: bool


@dataclass(frozen=True)
class Rules:
    """The options of averages, as :class:`~swavg.training.EMA` explains them."""

    device: torch.device | None
    buffers: Buffers
    frozen: Frozen

    def __post_init__(self) -> None:
        for what, value, known in (
            ("buffers", self.buffers, get_args(Buffers)),
            ("frozen", self.frozen, get_args(Frozen)),
        ):
            if value not in known:
                raise RequestError(f"{what} is {value!r}; it is one of {', '.join(known)}.")

    def keep(self, place: Place) -> bool:
        """Whether this place may have an average beside it."""
        return place.kind in ("parameter", "statistics") or (
            self.buffers == "average" and place.kind == "buffer"
        )

    def move(self, place: Place, value: Tensor) -> bool:
        """Whether the average moves towards ``value``, and is no copy of it."""
        numbers = value.is_floating_point() or value.is_complex()
        return numbers and (not place.is_buffer or self.buffers == "average")

    def begin(self, place: Place) -> Tensor | None:
        """A first average, the value of now; None where there is none, or not yet."""
        tensor = place.tensor()
        if tensor is None or not self.keep(place):
            return None
        if not place.is_buffer and self.frozen == "keep" and not tensor.requires_grad:
            return None
        value = local(tensor)
        if place.is_buffer and is_expanded(value):
            # An expanded constant: it cannot be written, and needs no copy.
            return None
        return self.copy(value, value, self.dtype(place, value))

    def dtype(self, place: Place, value: Tensor) -> torch.dtype:
        """That of an average of what is as wide as ``value``."""
        if not self.move(place, value):
            return value.dtype
        # Types of 8 bits are promoted to nothing.
        wide = value.dtype if value.itemsize > 1 else torch.float32
        return torch.promote_types(wide, torch.float32)

    def copy(self, average: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
        """``average`` anew, where that of ``value`` lies."""
        # No inference tensor, whatever the mode: that could not be written later.
        with torch.inference_mode(False):
            device = self.device or value.device
            made = torch.empty_like(average, device=device, dtype=dtype, requires_grad=False)
            return made.copy_(average.detach())

    def fit(self, place: Place, average: Tensor, value: Tensor) -> Tensor | None:
        """The average of ``place`` where it belongs and as wide as ``value``. RequestError if the
        shape is another or ``value`` has none."""
        if value.is_meta:
            raise RequestError(
                f"'{place.name}' is on the meta device now: it has no values.",
                hint="Give the model its weights back; the average is kept.",
            )
        if average.shape != value.shape:
            if not place.is_buffer:
                raise RequestError(
                    f"'{place.name}' is {list(value.shape)} now; its average is"
                    f" {list(average.shape)}.",
                    hint="Call refresh() to go on with it, from its value of then.",
                )
            return self.begin(place)
        if not torch.can_cast(value.dtype, average.dtype):
            # A counter that is no integer any more, and the like.
            return self.begin(place)
        if value.itemsize > average.itemsize:
            return self.copy(average, value, self.dtype(place, value))
        if self.device is None and average.device != value.device:
            return self.copy(average, value, average.dtype)
        return average
