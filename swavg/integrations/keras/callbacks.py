"""Averages in the course of ``model.fit``."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

from swavg.integrations.averaging import Averaging
from swavg.integrations.keras.ema import EMA
from swavg.integrations.keras.framework import keras, whole
from swavg.integrations.keras.swa import SWA
from swavg.weights.checks import check_count

Kind = TypeVar("Kind", EMA, SWA)


class _Averaging(Averaging[Kind], keras.callbacks.Callback):
    """Keeps one average of the model, from the first epoch of training on."""

    _unit = "step"

    def __init__(self) -> None:
        super().__init__()
        self._begun = False
        self._ahead = 0
        """By how much the average counts more than the model, whose optimizer may be another."""

    def _count(self, epoch: int) -> int:
        """What the model counts: optimizer steps, or epochs before this one."""
        return int(whole(self.model.optimizer.iterations))

    def _reached(self, count: int) -> None:
        """The model counts ``count`` now. While gradients accumulate, no step is done."""
        average, step = self._needed(), count + self._ahead
        if step > average.steps:
            average.advance(step)

    def _hide(self) -> None:
        # Also if an evaluation was interrupted, or the run before ended with the average.
        if self._average is not None and self._average.is_applied:
            self._average.restore()

    def on_train_begin(self, logs: Any = None) -> None:
        self._hide()
        self._begun = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        # Not when training begins: then other callbacks restore the model yet.
        if not self._begun:
            self._begun = True
            self._begin(epoch)

    def _begin(self, epoch: int) -> None:
        known = self._state is None and self._has_average(self.model)
        average = self._ready(self.model, resumed=epoch > 0 and not known)
        here, there = self._count(epoch), average.steps
        before = there - self._ahead if known else there
        if there == 0:
            average.skip_to(here)
        elif here not in (0, before):
            warnings.warn(
                f"The average is of {self._unit} {before}, and the model at {self._unit} {here}:"
                " it goes on as if nothing lay between.",
                stacklevel=2,
            )
        self._ahead = there - here if there else 0


class EMACallback(_Averaging[EMA]):
    """Keeps an EMA of the weights, updated after each optimizer step, whatever the accumulation.

    With ``evaluate``, validation, ``evaluate`` and ``predict`` that are given the callback see the
    averaged weights; training goes on with its own, which other callbacks save. ``options`` are
    those of :class:`EMA`. With ``steps_per_execution`` an update is made once an execution.
    """

    def __init__(self, decay: Any = 0.999, *, evaluate: bool = True, **options: Any) -> None:
        super().__init__()
        self._options = {"decay": decay, **options}
        # What it would refuse when training begins it refuses now.
        EMA([keras.Variable(0.0)], **self._options)
        self.evaluates = evaluate

    @property
    def ema(self) -> EMA:
        """The average. Raises RequestError before training begins."""
        return self._needed()

    def _made(self, model: Any) -> EMA:
        return EMA(model, **self._options)

    def _begin(self, epoch: int) -> None:
        super()._begin(epoch)
        at_once, every = self.model.steps_per_execution, self.ema.every
        if every % at_once != 0:
            warnings.warn(
                f"steps_per_execution is {at_once}, and every {every}: one update is made"
                f" for {at_once} steps or more.",
                stacklevel=2,
            )

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._reached(self._count(0))

    def on_test_begin(self, logs: Any = None) -> None:
        self._hide()
        if self.evaluates and self._has_average(self.model):
            self._show(self.model)

    def on_test_end(self, logs: Any = None) -> None:
        self._hide()

    on_predict_begin, on_predict_end = on_test_begin, on_test_end


class SWACallback(_Averaging[SWA]):
    """Averages the weights at the end of each epoch after the first ``start``, or with ``every``
    after optimizer step ``start`` at every ``every``-th.

    Training and validation see the training weights. When ``fit`` ends the model has the average
    (unless ``swap`` is False), and ``swa.swap()`` gives the training weights back; another ``fit``
    goes on with those.
    """

    def __init__(self, start: int, every: int | None = None, *, swap: bool = True) -> None:
        super().__init__()
        check_count("start", start, 0)
        if every is not None:
            check_count("every", every)
        self._first = start
        self._every = every
        self._unit = "epoch" if every is None else "step"
        self._swap = swap

    @property
    def swa(self) -> SWA:
        """The average. Raises RequestError before training begins."""
        return self._needed()

    def _made(self, model: Any) -> SWA:
        return SWA(model, self._first, self._every or 1)

    def _count(self, epoch: int) -> int:
        return epoch if self._every is None else super()._count(epoch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._every is not None:
            self._reached(self._count(0))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._every is None:
            self._reached(epoch + 1)

    def on_train_end(self, logs: Any = None) -> None:
        if self._average is None or self._average.n == 0:
            warnings.warn(
                f"Nothing was averaged: averaging starts after {self._unit} {self._first}.",
                stacklevel=2,
            )
        elif self._swap:
            self._average.swap()
            self._average.hand_over()
            if any(weight.name == "moving_variance" for weight in self.model.weights):
                warnings.warn(
                    "The model has the averaged weights, and the batch-norm statistics of the last"
                    " ones: call model(x, training=True) on batches until they have settled.",
                    stacklevel=2,
                )
