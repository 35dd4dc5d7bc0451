"""Snapshots in the course of ``model.fit``."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from swavg.errors import RequestError
from swavg.integrations.keras.averages import shown_in
from swavg.integrations.keras.callbacks import EMACallback
from swavg.integrations.keras.framework import keras, whole
from swavg.integrations.recording import Recording
from swavg.storage.destination import check_local

_SUFFIX = ".weights.h5"


class SnapshotCallback(Recording, keras.callbacks.Callback):
    """Saves the weights as ``folder/epoch=2-step=400-val_loss=0.25.weights.h5``, for
    ``swavg average folder --last 5`` or ``--best 3 --metric val_loss``.

    After each epoch, or with ``every`` at every ``every``-th optimizer step. With ``ema``, the
    callback that keeps it, the averages are saved. The metrics of validation are part of the name
    where it took place at that very step, and the weights that it saw are those that are saved. One
    that this callback wrote of the same step is replaced; what an earlier run left is never
    touched.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: int | None = None,
        ema: EMACallback | None = None,
    ) -> None:
        super().__init__(every)
        check_local(folder)
        self.folder = Path(folder)
        self._ema = ema
        self._epoch = 0
        self._saw_average = False
        self._written: set[Path] = set()

    def _steps(self) -> int:
        return int(whole(self.model.optimizer.iterations))

    def on_train_begin(self, logs: Any = None) -> None:
        # All callbacks of one fit have the very same parameters.
        if self._ema is not None and self._ema.params is not self.params:
            raise RequestError(
                "The EMACallback of a SnapshotCallback is not one of the callbacks of this fit.",
                hint="Give both: fit(..., callbacks=[ema, snapshots]).",
            )
        self.folder.mkdir(parents=True, exist_ok=True)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch + 1
        self._begin(self._steps())

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.flush(self.model)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._done(self._steps())

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self._saw_average = shown_in(self.model.weights)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._measures = self._saw_average == (self._ema is not None)
        metrics = {name: value for name, value in (logs or {}).items() if name.startswith("val_")}
        self._measured(self._steps(), metrics)
        self.flush(self.model)

    def _save(self, model: Any, step: int, metrics: Mapping[str, float]) -> None:
        stem = f"epoch={self._epoch}-step={step}"
        measured = "".join(
            f"-{re.sub(r'[^A-Za-z0-9_.@]', '_', name)}={_decimal(value)}"
            for name, value in metrics.items()
        )
        path = self.folder / f"{stem}{measured}{_SUFFIX}"
        same = re.compile(rf"epoch=\d+-step={step}(-[\w.@]+=[-\w.]+)*{re.escape(_SUFFIX)}")
        there = [each for each in self.folder.iterdir() if same.fullmatch(each.name)]
        if others := [each.name for each in there if each not in self._written]:
            # Nothing in a file says who wrote it.
            warnings.warn(
                f"No snapshot of step {step} was saved: {others[0]} is there already, of an"
                " earlier run. Move it away, or choose another folder.",
                stacklevel=2,
            )
            return
        hidden = self.folder / f".{stem}.partial{_SUFFIX}"
        if self._ema is None:
            model.save_weights(hidden, overwrite=True)
        else:
            with self._ema.ema.applied():
                model.save_weights(hidden, overwrite=True)
        os.replace(hidden, path)
        self._written.add(path)
        for other in there:
            # Of this run, with fewer metrics.
            if other != path:
                other.unlink()


def _decimal(value: Any) -> str:
    """``value`` without an exponent, to float32's accuracy."""
    return np.format_float_positional(float(value), precision=9, fractional=False, trim="-")
