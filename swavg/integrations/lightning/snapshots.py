"""Snapshots in the course of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swavg.errors import RequestError
from swavg.integrations.callbacks import BaseSnapshotCallback, evaluated_of
from swavg.integrations.lightning.framework import Callback

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class SnapshotCallback(BaseSnapshotCallback, Callback):
    __doc__ = BaseSnapshotCallback.__doc__

    @property
    def state_key(self) -> str:
        return self._generate_state_key(
            folder=str(self.snapshots.folder), ema=self._ema is not None
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if self._ema is not None and self._ema not in callbacks:
            raise RequestError(
                "The EMACallback of a SnapshotCallback is not one of the trainer's.",
                hint="Give both to Trainer(callbacks=[...]).",
            )
        self.evaluated(evaluated_of(callbacks))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.flush(pl_module)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._done(trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._measured(trainer.global_step, trainer.callback_metrics)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        # A run that goes on from this checkpoint does not come by here again.
        if trainer.training:
            self._done(trainer.global_step)
        self.flush(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.flush(pl_module)
