"""What the callbacks of all frameworks share: when a snapshot is made, and of what."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from swavg.errors import RequestError
from swavg.training import EMA, Snapshots


def check_options(options: Mapping[str, Any]) -> None:
    """Raise RequestError now for what :class:`EMA` would refuse when training starts."""
    # On a model without a tensor it costs nothing.
    try:
        inspect.signature(EMA).bind(nn.Module(), **options)
    except TypeError as error:
        raise RequestError(f"EMA: {error}.") from None
    EMA(nn.Module(), **options)


def recipe_of(ema: EMA, step: int) -> dict[str, Any]:
    """How an average came about, for the file that it is saved in."""
    return {
        "method": "training ema",
        "n": ema.num_updates,
        "decay": ema.decay,
        "every": ema.every,
        "step": step,
    }


class Recorder:
    """Makes a snapshot of a step once all that was measured at it is known: before the next.

    ``every`` counts optimizer steps; None means after each evaluation.
    """

    def __init__(self, snapshots: Snapshots, every: int | None) -> None:
        self.snapshots = snapshots
        self.measures = True
        self._every = every
        self._step = 0
        self._pending = False
        self._metrics: dict[str, float] = {}

    def begin(self, step: int) -> None:
        """Training starts, or goes on, at ``step``, of which nothing is to be saved."""
        self._step, self._metrics, self._pending = step, {}, False

    def done(self, step: int) -> None:
        """An optimizer step was done, ``step`` in all."""
        if step != self._step:
            self._step = step
            self._metrics = {}
            self._pending = self._every is not None and step % self._every == 0

    def measured(self, step: int, metrics: Mapping[str, Any]) -> None:
        """The weights of ``step`` were evaluated."""
        self.done(step)
        if self.measures:
            self._metrics |= {name: float(value) for name, value in metrics.items()}
        # Of a step that has a snapshot already, a new one with what was measured since.
        self._pending = self._every is None or step % self._every == 0

    def flush(self, model: nn.Module, ema: EMA | None) -> None:
        """Save what is due: the model, or its average. Raises as ``Snapshots.save``."""
        if not self._pending:
            return
        self._pending = False
        if ema is None:
            self.snapshots.save(model, self._step, self._metrics)
        else:
            recipe = recipe_of(ema, self._step)
            self.snapshots.save(ema.averaged(), self._step, self._metrics, recipe=recipe)

    def not_measured(self, best: int | None) -> None:
        """What is evaluated is not what is saved: no metrics. RequestError if they decide."""
        self.measures = False
        if best:
            raise RequestError(
                "The best snapshots cannot be told: the weights that are evaluated are not those"
                " that are saved.",
                hint="Save the averages with SnapshotCallback(..., ema=callback), or evaluate the"
                " training weights with EMACallback(..., evaluate=False).",
            )
