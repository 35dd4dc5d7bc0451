"""The running mean that the callbacks for PyTorch's frameworks keep."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from swavg.errors import RequestError
from swavg.integrations.averaging import Averaging
from swavg.integrations.callbacks import check_arguments
from swavg.training import SWA, SWASchedule
from swavg.training.batchnorm import has_statistics
from swavg.training.ema import warn_of_settings
from swavg.training.schedule import Anneal


class BaseSWACallback(Averaging[SWA]):
    """Averages the weights from optimizer step ``start`` on, every ``every`` optimizer steps.

    ``start`` may be the share of the run that comes before, as 0.75; without ``every`` the weights
    are averaged at the end of each epoch. With ``lr`` the learning rate goes to it within
    ``anneal_steps`` steps from ``start`` on, or with ``lr_low`` in cycles, whatever a scheduler
    says (:class:`swavg.training.SWA`, of which ``device``, ``buffers`` and ``frozen`` are the
    ``options``). Accumulated batches are one step.

    Training and evaluations during it see the training weights. When training ends the model has
    the average (unless ``swap`` is False), and ``swa.swap()`` gives its own weights back.
    Batch-norm statistics belong to other weights then: ``callback.swa.update_bn(loader,
    forward=lambda model, batch: model.net(batch[0]))`` recomputes them.
    """

    def __init__(
        self,
        start: int | float,
        every: int | None = None,
        lr: float | Sequence[float] | None = None,
        *,
        lr_low: float | Sequence[float] | None = None,
        anneal_steps: int = 0,
        anneal: Anneal = "cos",
        swap: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        if lr_low is not None and every is None:
            raise RequestError("lr_low needs every: the length of a cycle in optimizer steps.")
        if isinstance(start, float) and start == 1:
            raise RequestError(
                "start is 1.0, the whole run as a share: nothing would be averaged.",
                hint="start=1 is after one optimizer step; a share is below 1.",
            )
        share = isinstance(start, float) and 0 < start < 1
        rates: dict[str, Any] = {
            "lr": lr, "lr_low": lr_low, "anneal_steps": anneal_steps, "anneal": anneal,
        }  # fmt: skip
        trial = {"start": 0 if share else start, "every": 1 if every is None else every, **rates}
        check_arguments(SWA, {**options, **trial, "optimizer": _optimizer_for(lr, lr_low)})
        self._start = start
        self._every = every
        self._swap = swap
        self._options = options
        self._settings = {"every": every, **rates, "lr": _plain(lr), "lr_low": _plain(lr_low)}
        self._rates = None if lr is None else {**rates, "cycle": None if lr_low is None else every}
        self._total = math.inf
        """How many optimizer steps the run has."""
        self.step = 0
        """How many of them are done."""

    @property
    def swa(self) -> SWA:
        """The average. Raises RequestError before training starts."""
        return self._needed()

    def _made(self, model: nn.Module) -> SWA:
        self._first = self._first_step()
        self._averaged = 0
        self._schedule: SWASchedule | None = None
        self._schedule_state: Mapping[str, Any] | None = None
        self._guarded = self._first_epoch = False
        return SWA(model, **self._options)

    def _first_step(self) -> int:
        """The last step before the averaging."""
        if not isinstance(self._start, float) or self._start >= 1:
            return int(self._start)
        if not 0 < self._total < math.inf:
            raise RequestError(
                f"start is {self._start:g}, a share of a run whose length is not known.",
                hint="Give start as a number of optimizer steps.",
            )
        return round(self._start * self._total)

    # ---- In the course of a run.

    def _schedule_rates(self, optimizers: Sequence[Optimizer]) -> None:
        """Training starts, or goes on, with the ``optimizers``."""
        self._first_epoch = self.step == 0
        if self._rates is None:
            return
        if len(optimizers) != 1:
            raise RequestError(
                f"lr is the rate of one optimizer; there are {len(optimizers)}.",
                hint="Leave lr out, and set the rates yourself.",
            )
        if self._schedule is not None:
            self._schedule_state = self._schedule.state_dict()
        self._schedule = SWASchedule(optimizers[0], **self._rates)
        if self._schedule_state is not None:
            self._schedule.load_state_dict(self._schedule_state)

    def _before_step(self) -> None:
        """An optimizer step comes, or a part of one: what else has set the rate has no say."""
        if self._average is None or self._schedule is None:
            return
        # More than one if the run went on without a state, or did several steps for a batch.
        while self._schedule.steps < self.step - self._first + 1:
            self._schedule.step()

    def _done(self, step: int, *, epoch_ends: bool) -> None:
        """``step`` optimizer steps are done, in all, and with the last one maybe an epoch. It may
        be told again of one that it knows."""
        if self._average is None:
            return
        before, self.step = self.step, step
        if self._every is None:
            due = epoch_ends and step > max(self._first, self._averaged)
            if epoch_ends and self._first_epoch and step > 0:
                self._first_epoch = False
                self._check_unit(step)
        else:
            # Two optimizers may do two steps at once: the multiple itself may be passed over.
            done, known = (max(0, each - self._first) // self._every for each in (step, before))
            due = done > known
        if due:
            self._average.update()
            self._averaged = step

    def _check_unit(self, epoch: int) -> None:
        """Warn of a ``start`` within the first epoch, of ``epoch`` steps: it may have been meant
        in epochs."""
        if isinstance(self._start, int) and 1 < self._start < epoch:
            warnings.warn(
                f"start={self._start} are optimizer steps, within the first epoch of {epoch}: the"
                f" end of every epoch is averaged. start={self._start * epoch} is after epoch"
                f" {self._start}, 0.75 after three quarters of the run, and 0 all of it.",
                stacklevel=4,
            )

    def _end(self, model: nn.Module) -> None:
        """Training of ``model`` ended: it gets the average, if there is one."""
        if self.swa.n == 0:
            warnings.warn(
                f"Nothing was averaged: the run ended after {self.step} optimizer steps, and"
                f" averaging starts after {self._first}.",
                stacklevel=3,
            )
        elif self._swap:
            if not self._guarded:
                # The public name of it is younger than the oldest PyTorch that will do.
                register: Any = model._register_load_state_dict_pre_hook
                register(_OwnFirst(self.swa))
                self._guarded = True
            self.swa.swap()
            if self._options.get("buffers") != "average" and has_statistics(model):
                warnings.warn(
                    "The model has the averaged weights, and the batch-norm statistics of the last"
                    " ones: recompute them with callback.swa.update_bn(loader).",
                    stacklevel=3,
                )

    def _hide(self) -> None:
        """The model has its own weights, also if training ended with the average."""
        if self._average is not None and self._average.is_swapped:
            self._average.swap()

    # ---- State.

    def state_dict(self) -> dict[str, Any]:
        """All that it takes to go on bit for bit; empty before training, and while the model has
        the average: that is the result, and not to be continued."""
        if self._average is not None and self._average.is_swapped:
            return {}
        if self._average is None or self._state is not None:
            return super().state_dict()
        return {
            **self._average.state_dict(),
            "first": self._first,
            "averaged": self._averaged,
            "rates": None if self._schedule is None else self._schedule.state_dict(),
            "given": self._settings,
        }

    def _load(self, average: SWA, state: Mapping[str, Any]) -> None:
        if state["first"] != self._first and int(state["n"]) > 0:
            warnings.warn(
                f"The average was begun after step {state['first']}, and start says"
                f" {self._first}: it goes on.",
                stacklevel=3,
            )
            self._first = int(state["first"])
        warn_of_settings(state.get("given", self._settings), self._settings)
        average.load_state_dict(state)
        self._averaged = int(state["averaged"])
        # Its optimizer is known when training begins.
        self._schedule_state, self._schedule = state["rates"], None


def _plain(rate: float | Sequence[float] | None) -> float | list[float] | None:
    """A rate as a checkpoint has it."""
    if rate is None:
        return None
    return [*map(float, rate)] if isinstance(rate, Sequence) else float(rate)


def _optimizer_for(*rates: float | Sequence[float] | None) -> Optimizer:
    """An optimizer with as many groups as there are ``rates``, to try them."""
    counts = [len(rate) for rate in rates if isinstance(rate, Sequence)]
    if 0 in counts:
        raise RequestError("lr and lr_low are one rate, or one for each parameter group.")
    groups = range(max(counts, default=1))
    return SGD([{"params": [nn.Parameter(torch.zeros(0))]} for _ in groups], lr=0.1)


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
