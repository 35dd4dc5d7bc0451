"""Snapshots in the course of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swavg.integrations.callbacks import BaseSnapshotCallback
from swavg.integrations.transformers.framework import TrainerCallback

_NO_METRIC = ("_runtime", "_per_second", "_compilation_time")


class SnapshotCallback(BaseSnapshotCallback, TrainerCallback):
    __doc__ = BaseSnapshotCallback.__doc__

    _training = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin(state.global_step)
        self._training = True
        if self._ema is not None and not self._ema.evaluates:
            self.evaluated(None)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.flush(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._done(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step and self._training:
            self._measured(state.global_step, _of_the_model(kwargs.get("metrics") or {}))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A run that goes on from this checkpoint does not come by here again.
        self.flush(kwargs["model"])

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The last of training, before the best model is loaded in place of this one.
        if "train_runtime" in (kwargs.get("logs") or {}):
            self.flush(kwargs["model"])
            self._training = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Another run may have other callbacks.
        self.evaluated(self._ema)


def _of_the_model(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What says something of the model, and not of the machine."""
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and name != "epoch" and not name.endswith(_NO_METRIC)
    }
