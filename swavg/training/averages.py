"""Averages beside a model, tensor for tensor: moved by fused calls, shown in the model's place.

What EMA is, what PowerEMA has several of, and SWA one as soon as it averages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from swavg.errors import MismatchError, RequestError, some
from swavg.short_repr import ShortRepr
from swavg.training.moving import Move, move_all, move_buffers
from swavg.training.places import Place, Places
from swavg.training.rules import Buffers, Frozen, Rules
from swavg.training.showing import Showing
from swavg.training.wrapped import full, is_sharded, local, part_of, sharded_as

Group = tuple[list[Tensor], list[Tensor]]


class Averages(ShortRepr):
    """Averages of the parameters and persistent buffers of ``model``, started from it as it is.

    Subclasses say when they :meth:`move` and how far. The arguments are those of
    :class:`~swavg.training.EMA`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device | str | None = None,
        buffers: Buffers = "copy",
        frozen: Frozen = "keep",
        in_place: bool = False,
    ) -> None:
        self._rules = Rules(None if device is None else torch.device(device), buffers, frozen)
        self._averages: dict[str, Tensor] = {}
        self._groups: list[tuple[bool, bool, Group]] | None = None
        self._places = Places(model)
        self._showing = Showing(model, in_place=in_place)
        self._begin_all({})

    # ---- Following the model.

    def register(self) -> None:
        """Start again from the model as it is."""
        self._begin_all({})

    def refresh(self) -> None:
        """Go on with a model whose parameters have changed: a new one, or one of a new shape,
        starts at its present value; what is gone is forgotten."""
        self._begin_all(self._averages)

    @torch.no_grad()
    def _begin_all(self, known: Mapping[str, Tensor]) -> None:
        self._forbid_shown("look at the model anew")
        self._places = Places(self._places.model)
        self._averages, self._groups = {}, None
        for place in self._places.all:
            tensor, average = place.tensor(), known.get(place.name)
            if tensor is None or average is None or average.shape != local(tensor).shape:
                average = self._rules.begin(place)
            if average is not None:
                self._averages[place.name] = average

    @torch.no_grad()
    def move(self, move: Move, *, chunked: bool = False) -> None:
        """``move`` the averages towards the model's values; copy what is copied.

        ``chunked``: in lists of limited size, for a ``move`` that needs memory of its own. Raises
        RequestError if the model is not the one it was.
        """
        self._forbid_shown("update")
        self._follow()
        for moved, is_buffer, (averages, values) in self._groups or self._grouped():
            if not moved:
                torch._foreach_copy_(averages, values)
            elif is_buffer:
                move_buffers(move, averages, values)
            else:
                move_all(move, averages, values, chunked=chunked)

    def _follow(self) -> None:
        """Look at the model again."""
        if self._places.follow():
            self._groups = None

    def _grouped(self) -> list[tuple[bool, bool, Group]]:
        """Averages and values by what is done to them, device and dtype; kept while the model's
        tensors are the same. Those that begin now are not among them."""
        groups: dict[Any, Group] = {}
        for place, tensor, average in self._fitted():
            value = local(tensor) if is_sharded(tensor) else tensor
            moved = self._rules.move(place, value)
            key = moved, place.is_buffer, value.device, value.dtype, average.device, average.dtype
            averages, values = groups.setdefault(key, ([], []))
            averages.append(average)
            values.append(value)
        found = [(key[0], key[1], group) for key, group in groups.items()]
        # Nothing to average with yet: unfrozen, or set, since the last time.
        new = {each.name: self._rules.begin(each) for each in self._places.all
               if each.name not in self._averages}  # fmt: skip
        began = {name: average for name, average in new.items() if average is not None}
        self._averages |= began
        self._groups = None if began else found
        return found

    def _fitted(self) -> Iterator[tuple[Place, Tensor, Tensor]]:
        """What has an average: place, tensor, and the average as it fits the tensor of now."""
        for place in self._places.all:
            tensor, average = place.tensor(), self._averages.get(place.name)
            if tensor is None or average is None:
                continue
            fitting = self._rules.fit(place, average, local(tensor))
            if fitting is None:
                del self._averages[place.name]
            else:
                self._averages[place.name] = fitting
                yield place, tensor, fitting

    # ---- Showing.

    @property
    def is_applied(self) -> bool:
        """True while the model has the averaged weights."""
        return bool(self._showing)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights in the block, and its own again after it, also after
        an error. A graph of before is not disturbed. Parameters must not be changed in it: if they
        were, that is a RequestError at its end. Buffers may be: recomputed batch-norm statistics
        stay with the average (until the next update, where they are copied)."""
        self.apply_shadow()
        try:
            yield
        except BaseException:
            self._showing.end()
            raise
        # By hand within the block is no mistake.
        if self._showing:
            self.restore()

    @torch.no_grad()
    def apply_shadow(self) -> None:
        """Give the model the averaged weights, until :meth:`restore`. Raises RequestError if it
        has them already."""
        self.forbid_applied("apply the average again")
        self._follow()
        # Some may be replaced, so that they fit.
        self._groups = None
        self._showing.begin(self._fitted())

    def restore(self) -> None:
        """Give the model its own weights back, also where it was moved or given other tensors
        meanwhile. Raises RequestError if it has them; and, when all is restored, if a parameter
        was written to."""
        if not self._showing:
            raise RequestError(
                "The model has its own weights: there is nothing to restore.",
                hint="Apply the average first, or use the with statement.",
            )
        if self._others(later=True):
            raise RequestError(
                "Another average was applied after this one.",
                hint="Restore that one first: the last in, the first out.",
            )
        written = self._showing.written()
        self._showing.end()
        if written:
            raise RequestError(
                f"{some(sorted(map(repr, written)), 5)} changed while the model had the averaged"
                " weights: it has its own back, and the average may have been written to.",
                hint="Train, and load weights, outside of the block (or before restore()).",
            )

    def _others(self, *, later: bool = False) -> bool:
        """Whether other averages are in tensors of this model now; ``later``: applied after."""
        tensors = (place.tensor() for place in self._places.all)
        return self._showing.others(tensors, later=later)

    def _forbid_shown(self, act: str) -> None:
        """Raise RequestError while the model has, in some of its tensors, averaged values, which
        would be taken for its own weights."""
        self.forbid_applied(act)
        if self._others():
            raise RequestError(
                f"Another average is in the model now: cannot {act}.",
                hint="Restore that one first.",
            )

    def forbid_applied(self, act: str) -> None:
        """Raise RequestError while the model has these averages."""
        if self._showing:
            raise RequestError(
                f"Cannot {act}: the model has the averaged weights now.",
                hint="Restore its own first: leave the with block, or call restore() or swap().",
            )

    # ---- Values and state.

    def averaged(self, dtype: Literal["model"] | None = None) -> dict[str, Any]:
        """The model's whole state dict with the averaged values: in the average's dtype (float32
        for half precision), or with ``dtype="model"`` in the model's. Averages are copies; what has
        none (frozen weights, other buffers, extra state) is the model's own. Under FSDP2 a
        collective: every rank gets the whole."""
        if dtype not in (None, "model"):
            raise RequestError(f"dtype is {dtype!r}; it is 'model' or None.")
        made: dict[int, Tensor] = {}
        found: dict[str, Any] = {}
        with torch.no_grad():
            for name, value, average in self._values():
                if not isinstance(value, Tensor):
                    found[name] = value
                    continue
                if id(value) not in made:
                    part = local(value) if average is None else average
                    whole = full(part.to(value.dtype) if dtype == "model" else part, value)
                    copied = average is not None and _shares(whole, average)
                    made[id(value)] = whole.clone() if copied else whole
                found[name] = made[id(value)]
        return found

    def views(self, *, frozen: bool = True) -> dict[str, Tensor]:
        """The tensors of :meth:`averaged` without copies, to be saved now: what changes later
        changes in them. Under FSDP2 they are sharded as the model. ``frozen=False`` leaves out
        frozen parameters that have no average (the base of a LoRA model)."""
        return {
            name: sharded_as(local(value) if average is None else average, value)
            for name, value, average in self._values()
            if isinstance(value, Tensor)
            and (frozen or average is not None or not isinstance(value, nn.Parameter)
                 or value.requires_grad)
        }  # fmt: skip

    def _values(self) -> Iterator[tuple[str, Any, Tensor | None]]:
        """Name and value of what the model's state dict holds, and the average (this rank's)."""
        self._follow()
        for name, (value, place) in self._places.state().items():
            yield name, value, None if place is None else self._averages.get(place.name)

    def averages_state(self) -> dict[str, Any]:
        """What :meth:`load_averages` takes: the averages by name (themselves, not copies, where
        they are whole), and the names of what has none."""
        self._follow()
        averages, own = {}, []
        for place in self._places.all:
            value, average = place.tensor(), self._averages.get(place.name)
            if average is not None and value is not None:
                averages[place.name] = full(average, value)
            elif value is not None:
                own.append(place.name)
        return {"averages": averages, "own": own}

    @torch.no_grad()
    def load_averages(self, state: Mapping[str, Any]) -> None:
        """Take those of :meth:`averages_state`, bit for bit, wherever and in whichever dtype the
        model is. Raises MismatchError, with nothing changed, if names or shapes are others."""
        self.check_averages(state)
        given: Mapping[str, Tensor] = state["averages"]
        self._groups = None
        # One after the other: both averages need not fit into memory.
        for place in self._places.all:
            value, whole = place.tensor(), given.get(place.name)
            if value is not None and whole is not None and self._rules.keep(place):
                part = part_of(whole, value)
                dtype = self._rules.dtype(place, part)
                self._averages[place.name] = self._rules.copy(part, local(value), dtype)
            else:
                self._averages.pop(place.name, None)

    def check_averages(self, state: Mapping[str, Any]) -> None:
        """Raise what :meth:`load_averages` would."""
        self.forbid_applied("load a state")
        self._follow()
        self._refuse(state["averages"], state["own"])

    def adopt(self, given: Mapping[str, Tensor]) -> None:
        """Take averages that others kept. Raises MismatchError unless they have all parameters
        but frozen ones."""
        here = [(place, place.tensor()) for place in self._places.all]
        own = [
            place.name
            for place, tensor in here
            if place.name not in given
            and (place.is_buffer or (tensor is not None and not tensor.requires_grad))
        ]
        kept = {place.name for place, _ in here if self._rules.keep(place)}
        self.load_averages({"averages": {n: v for n, v in given.items() if n in kept}, "own": own})

    def _refuse(self, given: Mapping[str, Tensor], own: Iterable[str]) -> None:
        """Raise MismatchError unless ``given`` has a tensor of the right shape for every name that
        is not in ``own``, and none for another."""
        here = {each.name: each for each in self._places.all if each.tensor() is not None}
        needed = {name for name, place in here.items() if self._rules.keep(place)}
        problems = []
        if lacking := needed - set(own) - set(given):
            problems.append(f"it lacks {some(sorted(map(repr, lacking)), 5)}")
        if extra := set(given) - set(here):
            problems.append(f"the model has no {some(sorted(map(repr, extra)), 5)}")
        for name in needed & set(given):
            tensor = here[name].tensor()
            if tensor is not None and given[name].shape != tensor.shape:
                was, now = list(given[name].shape), list(tensor.shape)
                problems.append(f"'{name}' is {was} in it and {now} in the model")
        if problems:
            raise MismatchError(
                f"The state is not of this model: {'; '.join(sorted(problems)[:5])}.",
                hint="Build the model as it was when the state was saved.",
            )


def _shares(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.numel() > 0 and a.data_ptr() == b.data_ptr())
