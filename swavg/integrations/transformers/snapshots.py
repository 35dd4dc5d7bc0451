"""Snapshots in the course of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from swavg.integrations.recording import Recorder
from swavg.integrations.transformers.ema import EMACallback
from swavg.integrations.transformers.framework import Told, TrainerCallback
from swavg.training import Snapshots

_NO_METRIC = ("_runtime", "_per_second", "_compilation_time")


class SnapshotCallback(Told):
    """Saves snapshots that the command line reads, as :class:`swavg.training.Snapshots` does.

    Every ``every`` optimizer steps, or without it after each evaluation, the weights are saved
    into ``folder``; ``keep``, ``best``, ``metric``, ``mode`` and ``name`` are as there. What an
    evaluation found is recorded with the snapshot of its very step. With ``ema``, the callback
    that keeps it, the averages are saved instead of the training weights, without those that are
    frozen (the base of a LoRA model).

    A metric belongs to the weights that were evaluated: if an EMACallback evaluates the averages,
    snapshots of the training weights are saved without metrics.
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
        ema: EMACallback | None = None,
    ) -> None:
        self.snapshots = Snapshots(
            folder, keep=keep, best=best, metric=metric, mode=mode, name=name
        )
        self._best = best
        self._ema = ema
        self._training = False
        self._recorder = Recorder(self.snapshots, every)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._recorder.begin(state.global_step)
        self._training = True
        if self._ema is not None and not self._ema.evaluates:
            self._recorder.measure(False, self._best)

    def evaluated(self, averages: TrainerCallback) -> None:
        """Evaluations see those of ``averages``. Raises RequestError if others are saved, and the
        best of them."""
        if self._ema is not averages:
            self._recorder.measure(False, self._best)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._flush(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._recorder.done(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step and self._training:
            self._recorder.measured(state.global_step, _measured(kwargs.get("metrics") or {}))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A run that goes on from this checkpoint does not come by here again.
        self._flush(kwargs["model"])

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The last of training, before the best model is loaded in place of this one.
        if "train_runtime" in (kwargs.get("logs") or {}):
            self._flush(kwargs["model"])
            self._training = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Another run may have other callbacks.
        self._recorder.measure(True, self._best)

    def _flush(self, model: nn.Module) -> None:
        self._recorder.flush(model, None if self._ema is None else self._ema.ema)


def _measured(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What says something of the model, and not of the machine."""
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and name != "epoch" and not name.endswith(_NO_METRIC)
    }
