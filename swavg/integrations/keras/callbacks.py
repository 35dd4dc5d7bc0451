"""Averages in the course of ``model.fit``."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from swavg.errors import RequestError
from swavg.integrations.keras.ema import EMA
from swavg.integrations.keras.framework import keras, whole
from swavg.integrations.keras.swa import SWA
from swavg.weights.checks import check_count

Kind = TypeVar("Kind", EMA, SWA)


class _Averaging(keras.callbacks.Callback, Generic[Kind]):
    """Keeps one average of the model, from the first epoch of training on."""

    def __init__(self) -> None:
        super().__init__()
        self._average: Kind | None = None
        self._averaged_model: Any = None
        self._state: Mapping[str, Any] | None = None
        self._begun = False
        self._offset = 0

    @abstractmethod
    def _made(self) -> Kind:
        """A new average of the model."""

    def _ready(self) -> Kind:
        """The average of the model, with the state that was loaded."""
        if self._average is None or self._averaged_model is not self.model:
            self._average, self._averaged_model = self._made(), self.model
        if self._state is not None:
            self._average.load_state_dict(self._state)
            self._state = None
        return self._average

    def _steps(self) -> int:
        """How many optimizer steps were done, also in earlier runs of the average."""
        return int(whole(self.model.optimizer.iterations)) + self._offset

    def _own(self) -> None:
        """The model has its own weights, also if an evaluation or a run before was interrupted."""
        if self._average is not None and self._average.is_applied:
            self._average.restore()

    def on_train_begin(self, logs: Any = None) -> None:
        self._own()
        self._begun = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        # Not when training begins: then other callbacks restore the model yet.
        if not self._begun:
            self._begun, self._offset = True, 0
            self._begin(self._ready())

    @abstractmethod
    def _begin(self, average: Kind) -> None:
        """Training begins, or goes on."""

    def state_dict(self) -> dict[str, Any]:
        """The state of the average, as :meth:`EMA.state_dict`; empty before training."""
        return {} if self._average is None else self._average.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`, or what ``np.load`` reads of it, in the next run."""
        self._state = state if len(state) > 0 else None


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
        if self._average is None:
            raise RequestError("There is no average before training begins.")
        return self._average

    def _made(self) -> EMA:
        return EMA(self.model, **self._options)

    def _begin(self, average: EMA) -> None:
        at_once = self.model.steps_per_execution
        if average.every % at_once != 0:
            warnings.warn(
                f"steps_per_execution is {at_once}, and every {average.every}: one update is made"
                f" for {at_once} steps or more.",
                stacklevel=2,
            )
        if average.step is None:
            average.skip_to(self._steps())
        else:
            self._offset = average.step - self._steps()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # While gradients accumulate, no step is done.
        ema, steps = self.ema, self._steps()
        if ema.step is None or steps > ema.step:
            ema.update(steps)

    def on_test_begin(self, logs: Any = None) -> None:
        self._own()
        known = self._averaged_model is self.model or self._state is not None
        if self.evaluates and known:
            self._ready().apply_shadow()

    def on_test_end(self, logs: Any = None) -> None:
        self._own()

    def on_predict_begin(self, logs: Any = None) -> None:
        self.on_test_begin()

    def on_predict_end(self, logs: Any = None) -> None:
        self._own()


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
        self._swap = swap

    @property
    def swa(self) -> SWA:
        """The average. Raises RequestError before training begins."""
        if self._average is None:
            raise RequestError("There is no average before training begins.")
        return self._average

    def _made(self) -> SWA:
        return SWA(self.model, self._first, self._every or 1)

    def _begin(self, average: SWA) -> None:
        if self._every is not None:
            if average.steps == 0:
                average.skip_to(self._steps())
            else:
                self._offset = average.steps - self._steps()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._every is not None and (steps := self._steps()) > self.swa.steps:
            self.swa.step(steps)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._every is None:
            self.swa.step(max(epoch, self.swa.steps) + 1)

    def on_train_end(self, logs: Any = None) -> None:
        if self._average is None or self._average.n == 0:
            unit = "epoch" if self._every is None else "step"
            warnings.warn(
                f"Nothing was averaged: averaging starts after {unit} {self._first}.", stacklevel=2
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
