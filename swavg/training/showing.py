"""Averages in a model's place: its tensors exchange memory with them, or are written, and get their
own values back."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from swavg.training.places import Place
from swavg.training.wrapped import is_sharded, local, settle

_now: list[ReferenceType[Showing]] = []
"""What is shown in some model now, in the order in which it was applied."""

_versions = count(1 << 30, 1 << 8)
"""Versions of what is shown, another each time, and none that training comes to."""


@dataclass(slots=True, eq=False)
class _Shown:
    """A tensor of the model that shows its ``average``: its ``own`` data and their version (None
    where that cannot be set), and the ``version`` of what is shown."""

    place: Place
    tensor: Tensor
    average: Tensor
    own: Tensor
    before: int | None
    version: int = -1

    @property
    def written(self) -> bool:
        """Whether it is a parameter that was replaced since, or written to but by its module."""
        if self.place.is_buffer:
            return False
        if self.place.tensor() is not self.tensor:
            return True
        return not self.place.renorms and _version(self.tensor) != self.version


class Showing:
    """The tensors of ``model`` that show averages now: true if there are any.

    A tensor takes its average's memory where dtype, device and strides agree, so that nothing is
    copied and no graph of before is disturbed; else that of a rounded copy. An embedding with
    ``max_norm``, which writes to its weight, has a copy too. DTensors, and all with ``in_place``,
    are written instead: their addresses stay.
    """

    def __init__(self, model: nn.Module, *, in_place: bool) -> None:
        self._model = model
        self._in_place = in_place
        self._shown: list[_Shown] = []
        self._written: list[str] | None = None

    def __bool__(self) -> bool:
        return bool(self._shown)

    def begin(self, averages: Iterable[tuple[Place, Tensor, Tensor]]) -> None:
        """Show averages: place, tensor and average of each. After an error none is shown."""
        _forget_caches()
        try:
            for place, tensor, average in averages:
                self._show(place, tensor, average)
            self._mark(next(_versions))
        except BaseException:
            self.end()
            raise
        _now.append(ref(self))

    def _show(self, place: Place, tensor: Tensor, average: Tensor) -> None:
        written = self._in_place or is_sharded(tensor)
        # Kept before anything changes: an interrupt may come between any two lines.
        own = local(tensor).clone() if written else tensor.data
        # A DTensor's is not that of its part, which is written.
        marks = not (tensor.is_inference() or is_sharded(tensor))
        before = tensor._version if marks else None
        self._shown.append(_Shown(place, tensor, average, own, before))
        if written:
            local(tensor).copy_(average)
        else:
            alike = (average.device, average.dtype) == (tensor.device, tensor.dtype)
            alike = alike and average.stride() == tensor.stride() and not place.renorms
            tensor.data = average if alike else torch.empty_like(tensor).copy_(average)

    def _mark(self, version: int) -> None:
        """Let autograd know a graph of other weights: backward() through it is torch's error, as
        after any write, and not a gradient of weights that it was not built with."""
        marked = [shown for shown in self._shown if shown.before is not None]
        _set_versions([shown.tensor for shown in marked], [version] * len(marked))
        for shown in self._shown:
            shown.version = _version(shown.tensor)

    def written(self) -> list[str]:
        """The names of parameters that were written to, or replaced, since; as they were when it
        was first asked, since an :meth:`end` that was interrupted has written itself."""
        # FSDP2 may hold gathered parameters of an evaluation.
        settle(self._model)
        if self._written is None:
            self._written = [each.place.name for each in self._shown if each.written]
        return self._written

    @torch.no_grad()
    def end(self) -> None:
        """Give the tensors their own values back, also where the model was moved or given others
        meanwhile. After an interrupt it may be called again. What began later in the same tensors
        stays shown, and its end gives these own values back."""
        ended = []
        for each in reversed(self._later()):
            averages = [(shown.place, shown.average) for shown in each._shown]
            ended.append((each, averages, each.written()))
            each._end()
        self._end()
        for each, averages, written in reversed(ended):
            each.begin(
                (place, tensor, average)
                for place, average in averages
                if (tensor := place.tensor()) is not None
            )
            each._written = written or None

    def _end(self) -> None:
        _forget_caches()
        settle(self._model)
        # The last first: so tensors that share memory end as they were.
        for shown in reversed(self._shown):
            self._give_back(shown)
        # A graph of before is valid again.
        marked = {shown.tensor: shown.before for shown in self._shown if shown.before is not None}
        _set_versions([*marked], [*marked.values()])
        self._shown.clear()
        self._written = None
        _now[:] = [each for each in _now if each() not in (self, None)]

    def _give_back(self, shown: _Shown) -> None:
        place, own, average = shown.place, shown.own, shown.average
        now = place.tensor()
        if place.is_buffer and now is not None and not now.is_meta:
            value = now.to(average.device)
            if now.shape == average.shape and not torch.equal(value, average.to(now.dtype)):
                average.copy_(value)
        for tensor in (shown.tensor, None if now is shown.tensor else now):
            if tensor is None or tensor.is_meta or local(tensor).shape != own.shape:
                continue
            if self._in_place or is_sharded(tensor):
                local(tensor).copy_(own)
            else:
                copied = tensor is not shown.tensor
                tensor.data = own.to(tensor.device, tensor.dtype, copy=copied)
        if place.is_buffer and (now is None or now.shape != own.shape):
            place.owner[place.key] = own

    def _later(self) -> list[Showing]:
        """Those that began after this one, in a tensor of it or of another such one; in order."""
        showing = [each for reference in _now if (each := reference()) is not None]
        tensors = {id(shown.tensor) for shown in self._shown}
        found = []
        for each in showing[showing.index(self) + 1 :] if self in showing else ():
            its = {id(shown.tensor) for shown in each._shown}
            if not tensors.isdisjoint(its):
                found.append(each)
                tensors |= its
        return found

    def others(self, tensors: Iterable[Tensor | None], *, later: bool) -> bool:
        """Whether others show averages in some of the ``tensors`` now; ``later``: only those that
        began after this one."""
        showing = [reference() for reference in _now]
        if later and self in showing:
            showing = showing[showing.index(self) + 1 :]
        if not any(each is not self for each in showing):
            return False
        own = set(map(id, tensors))
        return any(
            id(shown.tensor) in own
            for each in showing
            if each is not None and each is not self
            for shown in each._shown
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy of one that is applied is applied to a copy of the model, of other versions.
        self.__dict__.update(state)
        for shown in self._shown:
            shown.before, shown.version = None, _version(shown.tensor)
        if self._shown:
            _now.append(ref(self))


def _version(tensor: Tensor) -> int:
    """How often a tensor was written to."""
    return 0 if tensor.is_inference() else tensor._version


def _set_versions(tensors: list[Tensor], versions: list[int]) -> None:
    setter: Any = torch._C._autograd._unsafe_set_version_counter
    try:
        setter(tensors, versions)
    except TypeError:
        # Older PyTorch takes them one by one.
        for tensor, version in zip(tensors, versions, strict=True):
            setter(tensor, version)


def _forget_caches() -> None:
    """Forget what torch has computed from the weights and would use again."""
    torch.clear_autocast_cache()
    parametrize = sys.modules.get("torch.nn.utils.parametrize")
    getattr(parametrize, "_cache", {}).clear()
