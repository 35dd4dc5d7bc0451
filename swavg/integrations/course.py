"""The running mean in the course of a run, for the callbacks of all frameworks."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from swavg.errors import RequestError
from swavg.training import SWA, SWASchedule
from swavg.training.batchnorm import has_statistics
from swavg.training.schedule import Anneal
from swavg.weights.checks import check_count


@dataclass(frozen=True)
class Plan:
    """When weights are averaged, and the learning rate meanwhile.

    ``start`` is a number of optimizer steps, or as a fraction the share of the run that comes
    before; ``every`` counts optimizer steps, None means at the end of each epoch. ``lr``,
    ``lr_low``, ``anneal_steps`` and ``anneal`` are those of :class:`swavg.training.SWA`. Raises
    RequestError for what could not be.
    """

    start: int | float
    every: int | None = None
    lr: float | Sequence[float] | None = None
    lr_low: float | Sequence[float] | None = None
    anneal_steps: int = 0
    anneal: Anneal = "cos"

    def __post_init__(self) -> None:
        if not (isinstance(self.start, float) and 0 < self.start < 1):
            check_count("start", self.start, 0)
        if self.every is not None:
            check_count("every", self.every)
        if self.lr_low is not None and self.every is None:
            raise RequestError("lr_low needs every: the length of a cycle in optimizer steps.")
        if self.lr is not None:
            counts = [len(rate) for rate in (self.lr, self.lr_low) if isinstance(rate, Sequence)]
            if 0 in counts:
                raise RequestError("lr and lr_low are one rate, or one for each parameter group.")
            groups = max(counts, default=1)
            one = [{"params": [nn.Parameter(torch.zeros(0))]} for _ in range(groups)]
            self.schedule(torch.optim.SGD(one, lr=0.1))
        elif self.lr_low is not None or self.anneal_steps:
            raise RequestError("lr_low and anneal_steps need lr, the rate of the averaging.")

    def first(self, total: float) -> int:
        """The last step before the averaging, in a run of ``total`` optimizer steps."""
        if not isinstance(self.start, float) or self.start >= 1:
            return int(self.start)
        if not 0 < total < math.inf:
            raise RequestError(
                f"start is {self.start:g}, a share of a run whose length is not known.",
                hint="Give start as a number of optimizer steps.",
            )
        return round(self.start * total)

    def schedule(self, optimizer: Optimizer) -> SWASchedule:
        """What drives the rate of ``optimizer``; ``lr`` is not None."""
        assert self.lr is not None
        return SWASchedule(
            optimizer,
            self.lr,
            lr_low=self.lr_low,
            cycle=None if self.lr_low is None else self.every,
            anneal_steps=self.anneal_steps,
            anneal=self.anneal,
        )


class Course:
    """One run: told of its steps, it averages and sets rates.

    ``swa`` is the average. ``options`` are further ones of :class:`swavg.training.SWA`.
    """

    def __init__(
        self, plan: Plan, model: nn.Module, total: float, options: Mapping[str, Any]
    ) -> None:
        self.swa = SWA(model, **options)
        self.model = model
        self._plan = plan
        self._recompute = options.get("buffers") != "average"
        self._guarded = False
        self._first = plan.first(total)
        self.step = 0
        """How many optimizer steps are done."""
        self._averaged = 0
        self._schedule: SWASchedule | None = None
        self._rates: Mapping[str, Any] | None = None

    def begin(self, step: int, optimizers: Sequence[Optimizer]) -> None:
        """Training starts, or goes on, after ``step`` optimizer steps."""
        self.step = step
        if self._plan.lr is None:
            return
        if len(optimizers) != 1:
            raise RequestError(
                f"lr is the rate of one optimizer; there are {len(optimizers)}.",
                hint="Leave lr out, and set the rates yourself.",
            )
        before = self._rates if self._schedule is None else self._schedule.state_dict()
        self._schedule = self._plan.schedule(optimizers[0])
        if before is not None:
            self._schedule.load_state_dict(before)

    def before_step(self) -> None:
        """An optimizer step comes, or a part of one: what else has set the rate has no say."""
        due = self.step - self._first + 1
        # More than one if the run went on without a state, or did several steps for a batch.
        while self._schedule is not None and self._schedule.steps < due:
            self._schedule.step()

    def done(self, step: int, *, epoch_ends: bool) -> None:
        """``step`` optimizer steps are done, in all. It may be told again of one that it knows."""
        before, self.step = self.step, step
        every = self._plan.every
        if every is None:
            due = epoch_ends and step > max(self._first, self._averaged)
        else:
            # Two optimizers may do two steps at once: the multiple itself may be passed over.
            due = max(0, step - self._first) // every > max(0, before - self._first) // every
        if due:
            self.swa.update()
            self._averaged = step

    def end(self, swap: bool) -> None:
        """Training ended: with ``swap`` the model gets the average, if there is one."""
        if self.swa.n == 0:
            warnings.warn(
                f"Nothing was averaged: the run ended after {self.step} optimizer steps, and"
                f" averaging starts after {self._first}.",
                stacklevel=4,
            )
        elif swap:
            self._guard()
            self.swa.swap()
            if self._recompute and has_statistics(self.model):
                warnings.warn(
                    "The model has the averaged weights, and the batch-norm statistics of the last"
                    " ones: recompute them with callback.swa.update_bn(loader).",
                    stacklevel=4,
                )

    def own(self) -> None:
        """The model has its own weights, also if it had the average."""
        if self.swa.is_swapped:
            self.swa.swap()

    def _guard(self) -> None:
        if not self._guarded:
            # The public name of it is younger than the oldest PyTorch that will do.
            register: Any = self.model._register_load_state_dict_pre_hook
            register(_OwnFirst(self.swa))
            self._guarded = True

    def state_dict(self) -> dict[str, Any]:
        """All that it takes to go on bit for bit."""
        return {
            **self.swa.state_dict(),
            "first": self._first,
            "averaged": self._averaged,
            "rates": None if self._schedule is None else self._schedule.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`, before :meth:`begin`."""
        if state["first"] != self._first and int(state["n"]) > 0:
            warnings.warn(
                f"The average was begun after step {state['first']}, and start says"
                f" {self._first}: it goes on.",
                stacklevel=3,
            )
            self._first = int(state["first"])
        self.swa.load_state_dict(state)
        self._averaged = int(state["averaged"])
        # Its optimizer is known when training begins.
        self._rates, self._schedule = state["rates"], None


class _OwnFirst:
    """Told that weights are loaded into a model, gives it its own first: otherwise they would be
    loaded into the average, which has traded places with them."""

    def __init__(self, swa: SWA | None) -> None:
        self._swa = None if swa is None else weakref.ref(swa)

    def __call__(self, *args: Any) -> None:
        swa = None if self._swa is None else self._swa()
        if swa is not None and swa.is_swapped:
            swa.swap()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the model has no average.
        return _OwnFirst, (None,)
