"""The averages that the callbacks for PyTorch's frameworks keep. They derive from these, and only
translate their framework's hooks."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from swavg.errors import RequestError
from swavg.integrations.averaging import Averaging, Evaluated
from swavg.integrations.course import Course, Plan
from swavg.training import EMA, SWA
from swavg.training.schedule import Anneal


class BaseEMACallback(Evaluated[EMA]):
    """Keeps an EMA, updated once for each report of further optimizer steps."""

    def __init__(self, decay: float = 0.999, *, evaluate: bool = True, **options: Any) -> None:
        super().__init__()
        self._options = {"decay": decay, **options}
        _check_arguments(EMA, self._options)
        self.evaluates = evaluate
        self.step = 0
        """How many optimizer steps are done."""

    @property
    def ema(self) -> EMA | None:
        """The average; None before training starts."""
        return self._average

    def _made(self, model: Any) -> EMA:
        return EMA(model, **self._options)

    def _done(self, step: int) -> None:
        """``step`` optimizer steps are done, in all."""
        if step > self.step and self._average is not None:
            self.step = step
            self._average.update()

    @staticmethod
    def _check_one_evaluated(callbacks: Sequence[Any]) -> None:
        """Raise RequestError if two of a trainer's ``callbacks`` would be evaluated."""
        if sum(isinstance(c, BaseEMACallback) and c.evaluates for c in callbacks) > 1:
            raise RequestError(
                "Two EMACallbacks would be evaluated at once.", hint="Give one evaluate=False."
            )


class BaseSWACallback(Averaging[Course]):
    """Keeps a running mean, which the model gets when training ends."""

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
        self._plan = Plan(start, every, lr, lr_low, anneal_steps, anneal)
        _check_arguments(SWA, options)
        self._options = options
        self._swap = swap
        self._total = math.inf
        """How many optimizer steps the run has."""
        self.step = 0
        """How many of them are done."""

    @property
    def swa(self) -> SWA:
        """The average. Raises RequestError before training starts."""
        if self._average is None:
            raise RequestError("There is no average before training starts.")
        return self._average.swa

    def _made(self, model: Any) -> Course:
        return Course(self._plan, model, self._total, self._options)

    def _own_weights_again(self, model: nn.Module) -> None:
        """Training of ``model`` goes on with its own weights, also if it had the average."""
        if self._average is not None and self._averaged_model is model:
            self._average.own()

    def _run(self, course: Course, step: int, optimizers: Sequence[Optimizer]) -> None:
        """Training starts, or goes on, after ``step`` optimizer steps."""
        self.step = step
        course.begin(step, optimizers)

    def _before_step(self) -> None:
        """An optimizer step comes, or a part of one."""
        if self._average is not None:
            self._average.before_step()

    def _done(self, step: int, *, epoch_ends: bool) -> None:
        """``step`` optimizer steps are done, in all, and with the last one maybe an epoch."""
        self.step = step
        if self._average is not None:
            self._average.done(step, epoch_ends=epoch_ends)

    def _end(self) -> None:
        """Training ended."""
        if self._average is not None:
            self._average.end(self._swap)


def _check_arguments(kind: type[EMA] | type[SWA], options: Mapping[str, Any]) -> None:
    """Raise RequestError now for what ``kind`` would refuse when training starts."""
    # On a model without a tensor it costs nothing.
    try:
        inspect.signature(kind).bind(nn.Module(), **options)
    except TypeError as error:
        raise RequestError(f"{kind.__name__}: {error}.") from None
    kind(nn.Module(), **options)
