"""What the callbacks of PyTorch's frameworks share: when a snapshot is made, and of what."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from swavg.errors import RequestError
from swavg.integrations.callbacks import BaseEMACallback
from swavg.training import EMA, Snapshots
from swavg.weights.checks import check_count


def recipe_of(ema: EMA, step: int) -> dict[str, Any]:
    """How an average came about, for the file that it is saved in."""
    return {
        "method": "training ema",
        "n": ema.num_updates,
        "decay": None if callable(ema.decay) else ema.decay,
        "every": ema.every,
        "step": step,
    }


class BaseSnapshotCallback:
    """Makes a snapshot of a step once all that was measured at it is known: before the next.

    ``every`` counts optimizer steps; None means after each evaluation.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: int | None = None,
        keep: int | None = None,
        best: int | None = None,
        metric: str | None = None,
        mode: str | None = None,
        name: str = "step-{step}",
        ema: BaseEMACallback | None = None,
    ) -> None:
        super().__init__()
        self.snapshots = Snapshots(
            folder, keep=keep, best=best, metric=metric, mode=mode, name=name
        )
        if every is not None:
            check_count("every", every)
        self._every = every
        self._best = best
        self._ema = ema
        self._measures = True
        self._step = 0
        self._due = False
        self._pending = False
        self._metrics: dict[str, float] = {}

    def _begin(self, step: int) -> None:
        """Training starts, or goes on, at ``step``, of which nothing is to be saved."""
        self._step, self._metrics = step, {}
        self._due = self._pending = False

    def _done(self, step: int) -> None:
        """``step`` optimizer steps are done, in all."""
        if step == self._step:
            return
        # Two optimizers may do two steps at once: the multiple itself may be passed over.
        self._due = self._every is not None and step // self._every > self._step // self._every
        self._step, self._metrics, self._pending = step, {}, self._due

    def _measured(self, step: int, metrics: Mapping[str, Any]) -> None:
        """The weights of ``step`` were evaluated."""
        self._done(step)
        if self._measures:
            self._metrics |= {name: float(value) for name, value in metrics.items()}
        # Of a step that has a snapshot already, a new one with what was measured since.
        self._pending = self._every is None or self._due

    def flush(self, model: nn.Module) -> None:
        """Save what is due: the model, which has its own weights, or its average. Otherwise that
        waits for what is still measured at this step. Raises as ``Snapshots.save``."""
        if not self._pending:
            return
        self._pending = False
        ema = None if self._ema is None else self._ema.ema
        if ema is None:
            self.snapshots.save(model, self._step, self._metrics)
        else:
            views, recipe = ema.views(frozen=False), recipe_of(ema, self._step)
            self.snapshots.save(views, self._step, self._metrics, recipe=recipe)

    def evaluated(self, averages: BaseEMACallback | None) -> None:
        """What is evaluated are those ``averages``, or the training weights. If others are saved
        there are no metrics, and RequestError if they decide."""
        self._measures = self._ema is averages
        if self._best and not self._measures:
            raise RequestError(
                "The best snapshots cannot be told: the weights that are evaluated are not those"
                " that are saved.",
                hint="Save the averages with SnapshotCallback(..., ema=callback), or evaluate the"
                " training weights with EMACallback(..., evaluate=False).",
            )
