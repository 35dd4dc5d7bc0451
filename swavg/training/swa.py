"""Stochastic weight averaging (SWA) while a model trains.

Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization"
(arXiv 1803.05407).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from swavg.errors import RequestError
from swavg.short_repr import ShortRepr
from swavg.training.around import Around, Parameters
from swavg.training.averages import Averages
from swavg.training.batchnorm import update_bn
from swavg.training.ema import check_state, warn_of_settings
from swavg.training.moving import running_mean
from swavg.training.places import check_model
from swavg.training.rules import Options
from swavg.training.schedule import Anneal, SWASchedule
from swavg.weights.checks import check_count


class SWA(ShortRepr, Around):
    """The running mean of weights, from step ``start`` on, at every ``every``-th step.

    Around an optimizer, as ``torchcontrib.optim.SWA`` was:

        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = SWA(sgd, start=1000, every=50, lr=0.05, model=model)
        >>> for batch in batches:
        ...     optimizer.zero_grad()
        ...     loss(model, batch).backward()
        ...     optimizer.step()
        >>> optimizer.swap()
        >>> optimizer.update_bn(batches)

    or of a model, with ``step()`` called after the optimizer's (and, to average once an epoch, once
    an epoch: then ``start`` and ``every`` count epochs):

        >>> swa = SWA(model, start=1000, every=50, lr=0.05, optimizer=optimizer)

    Steps count from 1. After step s > ``start`` with ``(s - start) % every == 0`` the weights are
    averaged in: ``a <- a + (w - a) / (n + 1)``, the first is a copy. With ``start=None`` only
    :meth:`update` averages. From step ``start + 1`` on the learning rate goes to ``lr`` within
    ``anneal_steps`` steps, or with ``lr_low`` in cycles of ``every`` steps from ``lr`` down to
    ``lr_low``, each ending where its weights are averaged
    (:class:`~swavg.training.SWASchedule`). Without ``lr`` it is left alone.

    Averages are float32 for half precision and take memory from the first on. ``options`` are as in
    :class:`~swavg.training.EMA`. An optimizer alone knows neither names nor buffers: with
    ``model``, :meth:`averaged` and :meth:`update_bn` know them.

    Around an optimizer it is one itself, to learning-rate schedulers and GradScaler too: parameter
    groups, state and hooks are the inner one's.
    """

    def __init__(
        self,
        optimizer_or_model: Optimizer | nn.Module,
        start: int | None = None,
        every: int = 1,
        lr: float | Sequence[float] | None = None,
        *,
        lr_low: float | Sequence[float] | None = None,
        anneal_steps: int = 0,
        anneal: Anneal = "cos",
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._around = isinstance(optimizer_or_model, Optimizer)
        self._model: nn.Module
        if isinstance(optimizer_or_model, Optimizer):
            if optimizer is not None:
                raise RequestError("Two optimizers were given.")
            optimizer = optimizer_or_model
            self._model = Parameters(optimizer) if model is None else check_model(model)
        else:
            if model is not None:
                raise RequestError("Two models were given.")
            self._model = check_model(optimizer_or_model)
        _check_together(optimizer, self._model)
        if isinstance(start, (Optimizer, nn.Module)):
            raise RequestError(
                f"start is {type(start).__name__}; it must be a whole number.",
                hint="Pass optimizer=... or model=... by name.",
            )
        if start is not None:
            check_count("start", start, 0)
        check_count("every", every)
        super().__init__(optimizer)
        self._start = start
        self._every = every
        self._options = options
        # What it would refuse at the first average it refuses now.
        Averages(nn.Module(), **self._options)
        self.n = 0
        """Of how many weights the average is the mean."""
        self.steps = 0
        """How many steps were done."""
        self.schedule: SWASchedule | None = None
        self._averages: Averages | None = None
        if lr is None:
            if lr_low is not None or anneal_steps != 0:
                raise RequestError("lr_low and anneal_steps need lr, the rate of the averaging.")
        elif optimizer is None:
            raise RequestError(
                "lr needs the optimizer whose rate it is.", hint="Pass optimizer=..."
            )
        elif start is None:
            raise RequestError("lr needs start, the step from which on it holds.")
        else:
            self.schedule = SWASchedule(
                optimizer,
                lr,
                lr_low=lr_low,
                cycle=None if lr_low is None else every,
                anneal_steps=anneal_steps,
                anneal=anneal,
            )
        if not self._around:
            self._set_rates()

    # ---- Steps.

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do the inner optimizer's step, or note that it was done; average if it is time.

        Returns what the inner optimizer's returns. Raises RequestError while swapped.
        """
        self._forbid_swapped("do a step")
        if closure is not None and not self._around:
            raise RequestError(
                "A closure is for the optimizer's step(), and this SWA does not make it.",
                hint="Build it around the optimizer: SWA(optimizer, ..., model=model).",
            )
        loss = None
        if self._around:
            # Before the step, so that a scheduler that has also set the rate does not have its way.
            self._set_rates()
            step = self.inner("step()").step
            loss = step() if closure is None else step(closure)
        self.steps += 1
        done = 0 if self._start is None else self.steps - self._start
        if done > 0 and done % self._every == 0:
            self.update()
        if not self._around:
            self._set_rates()
        return loss

    def _set_rates(self) -> None:
        """Set the rates of the step that comes."""
        if self.schedule is not None and self._start is not None and self.steps >= self._start:
            self.schedule.step()

    def update(self) -> None:
        """Average the present weights in, whatever the step."""
        self._forbid_swapped("update")
        if self._averages is None:
            # Made from the weights of now: their copy is the mean of one.
            self._averages = Averages(self._averaged_model(), **self._options)
        else:
            self._averaged_model()
            self._averages.move(partial(running_mean, n=self.n), chunked=True)
        self.n += 1

    # ---- The average.

    @property
    def is_swapped(self) -> bool:
        """True while the model has the averaged weights."""
        return self._averages is not None and self._averages.is_applied

    def swap(self) -> None:
        """Exchange the model's weights and the averaged ones; again, back.

        While the model has the averaged ones, stepping and updating are errors. Raises RequestError
        if nothing was averaged yet.
        """
        averages = self._needed()
        if averages.is_applied:
            averages.restore()
        else:
            averages.apply_shadow()

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model has the averaged weights in the block, and its own again after it, also after
        an error. Batch-norm statistics that are recomputed in it stay with the average."""
        with self._needed().applied():
            yield

    def averaged(self, dtype: Literal["model"] | None = None) -> dict[str, Tensor]:
        """The model's whole state dict with the averaged values, as :meth:`EMA.averaged`."""
        self._require_model("averaged()")
        return self._needed().averaged(dtype)

    def views(self, *, frozen: bool = True) -> dict[str, Tensor]:
        """The tensors of :meth:`averaged` without copies, as :meth:`EMA.views`."""
        self._require_model("views()")
        return self._needed().views(frozen=frozen)

    def update_bn(
        self,
        batches: Iterable[Any],
        *,
        device: torch.device | str | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
    ) -> list[str]:
        """Recompute the average's batch-norm statistics over ``batches``
        (:func:`~swavg.training.update_bn`). They stay with the average, until the next update
        unless buffers are averaged; the model's own are as before once it is swapped back."""
        model = self._require_model("update_bn()")
        with nullcontext() if self.is_swapped else self.swapped():
            return update_bn(model, batches, device=device, forward=forward)

    def refresh(self) -> None:
        """Go on with a model whose parameters have changed, as :meth:`EMA.refresh`."""
        if self._averages is not None:
            self._averaged_model()
            self._averages.refresh()

    def _averaged_model(self) -> nn.Module:
        """The model, or the optimizer's parameters as they are now."""
        if isinstance(self._model, Parameters):
            self._model.follow()
        return self._model

    def _require_model(self, what: str) -> nn.Module:
        if isinstance(self._model, Parameters):
            raise RequestError(
                f"{what} needs the model, which an optimizer does not know.",
                hint="Build it with SWA(optimizer, ..., model=model).",
            )
        return self._model

    def _needed(self) -> Averages:
        if self._averages is None:
            where = "" if self._start is None else f": averaging starts after step {self._start}"
            raise RequestError(f"Nothing was averaged yet, after {self.steps} steps{where}.")
        self._averaged_model()
        return self._averages

    def _forbid_swapped(self, act: str) -> None:
        if self._averages is not None:
            self._averages.forbid_applied(act)

    # ---- State.

    def state_dict(self) -> dict[str, Any]:
        """All that it takes to go on bit for bit: average, position, and the inner optimizer's
        state. It holds the averages themselves, not copies. Warns while swapped: the model's own
        state dict is then no place to go on from."""
        self._averaged_model()
        if self.is_swapped:
            warnings.warn(
                "The model has the average now: a run that goes on from its state dict of now would"
                " take that for the weights of training. Call swap() first, then save both.",
                stacklevel=2,
            )
        none: dict[str, Any] = {"averages": {}, "own": []}
        return {
            "version": 1,
            "n": self.n,
            "steps": self.steps,
            "settings": self._settings(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            **(none if self._averages is None else self._averages.averages_state()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`. Warns if it was made with other settings, and goes on
        with these. Raises MismatchError for other names and shapes."""
        self._forbid_swapped("load a state")
        check_state(state, "SWA", {"n", "steps", "settings", "schedule", "optimizer"})
        if (state["optimizer"] is None) != (self.optimizer is None):
            without = "without" if state["optimizer"] is None else "with"
            raise RequestError(
                f"The state was made {without} an optimizer.",
                hint="Build the SWA in the same way.",
            )
        averages = None
        if state["n"] > 0:
            averages = Averages(self._averaged_model(), **self._options)
            averages.load_averages(state)
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None and state["schedule"] is not None:
            self.schedule.load_state_dict(state["schedule"])
        self._averages = averages
        self.n = int(state["n"])
        self.steps = int(state["steps"])
        warn_of_settings(state["settings"], self._settings())

    def _settings(self) -> dict[str, Any]:
        return {
            "start": self._start,
            "every": self._every,
            "schedule": None if self.schedule is None else self.schedule.settings(),
        }

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """The inner optimizer's. Its parameters are averaged from the next update on; before that
        their average is what they are now."""
        self._forbid_swapped("add parameters")
        self.inner("add_param_group()").add_param_group(param_group)
        if isinstance(self._model, Parameters):
            self.refresh()

    def facts(self) -> Mapping[str, object]:
        inner = None if self.optimizer is None else type(self.optimizer).__name__
        return {"optimizer": inner, "start": self._start, "every": self._every, "n": self.n}

    def __repr__(self) -> str:
        around = "" if self.optimizer is None else f"{type(self.optimizer).__name__}, "
        return f"SWA({around}start={self._start}, every={self._every}, n={self.n})"

    # ---- The names of EMA, and of torchcontrib.

    applied = swapped

    update_swa = update
    swap_swa_sgd = swap

    @staticmethod
    def bn_update(
        loader: Iterable[Any], model: nn.Module, device: torch.device | str | None = None
    ) -> None:
        """:func:`~swavg.training.update_bn`."""
        update_bn(model, loader, device=device)


def _check_together(optimizer: Optimizer | None, model: nn.Module) -> None:
    """Raise RequestError if the optimizer trains nothing of the model."""
    if optimizer is None:
        return
    own = {id(parameter) for parameter in model.parameters()}
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if own and trained and own.isdisjoint(trained):
        raise RequestError(
            "The optimizer has none of the model's parameters.",
            hint="Build it from model.parameters(), after the model was moved or wrapped.",
        )
