"""What the callbacks for PyTorch's frameworks keep and save. They derive from these, and only
translate their framework's hooks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from swavg.errors import RequestError
from swavg.integrations.averaging import Averaging
from swavg.integrations.recording import Recording
from swavg.training import EMA, SWA, Snapshots


class BaseEMACallback(Averaging[EMA]):
    """Keeps an EMA of the weights, updated after each optimizer step, whatever the accumulation.
    ``options`` are those of :class:`swavg.training.EMA`: ``warmup``, ``every``, ``device``,
    ``buffers``, ..."""

    def __init__(self, decay: float = 0.999, *, evaluate: bool = True, **options: Any) -> None:
        super().__init__()
        self._options = {"decay": decay, **options}
        check_arguments(EMA, self._options)
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


class BaseSnapshotCallback(Recording):
    """Saves snapshots that the command line reads, as :class:`swavg.training.Snapshots` does.

    Every ``every`` optimizer steps, or without it after each evaluation, the weights are saved
    into ``folder``; ``options`` (``keep``, ``best``, ``metric``, ``mode``, ``name``) are as there.
    What was measured is recorded only with the snapshot of its very step. With ``ema``, the
    callback that keeps it, the averages are saved instead of the training weights, without those
    that are frozen (the base of a LoRA model).

    A metric belongs to the weights that were evaluated: if an EMACallback evaluates the averages,
    snapshots of the training weights are saved without metrics.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: int | None = None,
        ema: BaseEMACallback | None = None,
        **options: Any,
    ) -> None:
        super().__init__(every)
        self.snapshots = Snapshots(folder, **options)
        self._best = options.get("best")
        self._ema = ema

    def _save(self, model: nn.Module, step: int, metrics: Mapping[str, float]) -> None:
        if self._ema is None or self._ema.ema is None:
            self.snapshots.save(model, step, metrics)
        else:
            ema = self._ema.ema
            views, recipe = ema.views(frozen=False), recipe_of(ema, step)
            self.snapshots.save(views, step, metrics, recipe=recipe)

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


def evaluated_of(callbacks: Sequence[Any]) -> BaseEMACallback | None:
    """The one of a trainer's ``callbacks`` whose average is evaluated. RequestError for two."""
    found = [each for each in callbacks if isinstance(each, BaseEMACallback) and each.evaluates]
    if len(found) > 1:
        raise RequestError(
            "Two EMACallbacks would be evaluated at once.", hint="Give one evaluate=False."
        )
    return found[0] if found else None


def recipe_of(ema: EMA, step: int) -> dict[str, Any]:
    """How an average came about, for the file that it is saved in."""
    return {
        "method": "training ema",
        "n": ema.num_updates,
        "decay": None if callable(ema.decay) else ema.decay,
        "every": ema.every,
        "step": step,
    }


def check_arguments(kind: type[EMA] | type[SWA], options: Mapping[str, Any]) -> None:
    """Raise RequestError now for what ``kind`` would refuse when training starts."""
    # On a model without a tensor it costs nothing.
    try:
        kind(nn.Module(), **options)
    except TypeError as error:
        raise RequestError(f"{error}.") from None
