"""Snapshots in the course of ``model.fit``."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from swavg.integrations.keras.averages import shows_average
from swavg.integrations.keras.callbacks import EMACallback
from swavg.integrations.keras.framework import crossed, keras, whole
from swavg.weights.checks import check_count

_SUFFIX = ".weights.h5"


class SnapshotCallback(keras.callbacks.Callback):
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
        super().__init__()
        if every is not None:
            check_count("every", every)
        self.folder = Path(folder)
        self._every = every
        self._ema = ema
        self._step = 0
        self._epoch = 0
        self._due = False
        self._saw_average = False
        self._written: set[Path] = set()

    def _steps(self) -> int:
        return int(whole(self.model.optimizer.iterations))

    def on_train_begin(self, logs: Any = None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._due = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch, self._step = epoch + 1, self._steps()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._flush({})

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        before, self._step = self._step, self._steps()
        if self._every is not None:
            # Saved once it is known whether validation follows.
            self._due = crossed(before, self._step, self._every)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self._saw_average = shows_average(self.model)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._due = self._due or self._every is None
        same = self._saw_average == (self._ema is not None)
        metrics = {name: value for name, value in (logs or {}).items() if name.startswith("val_")}
        self._flush(metrics if same else {})

    def _flush(self, metrics: Mapping[str, Any]) -> None:
        """Save what is due."""
        if not self._due:
            return
        self._due = False
        stem = f"epoch={self._epoch}-step={self._step}"
        measured = "".join(
            f"-{re.sub(r'[^A-Za-z0-9_.@]', '_', name)}={_decimal(value)}"
            for name, value in metrics.items()
        )
        path = self.folder / f"{stem}{measured}{_SUFFIX}"
        same = re.compile(rf"epoch=\d+-step={self._step}(-[\w.@]+=[-\w.]+)*{re.escape(_SUFFIX)}")
        there = [each for each in self.folder.iterdir() if same.fullmatch(each.name)]
        if others := [each.name for each in there if each not in self._written]:
            # Nothing in a file says who wrote it.
            warnings.warn(
                f"No snapshot of step {self._step} was saved: {others[0]} is there already, of an"
                " earlier run. Move it away, or choose another folder.",
                stacklevel=2,
            )
            return
        hidden = self.folder / f".{stem}.partial{_SUFFIX}"
        if self._ema is None:
            self.model.save_weights(hidden, overwrite=True)
        else:
            with self._ema.ema.applied():
                self.model.save_weights(hidden, overwrite=True)
        os.replace(hidden, path)
        self._written.add(path)
        for other in there:
            # Of this run, with fewer metrics.
            if other != path:
                other.unlink()


def _decimal(value: Any) -> str:
    """``value`` without an exponent, to float32's accuracy."""
    return np.format_float_positional(float(value), precision=9, fractional=False, trim="-")
