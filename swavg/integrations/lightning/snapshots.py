"""Snapshots in the course of a run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from swavg.errors import RequestError
from swavg.integrations.lightning.ema import EMACallback, emas
from swavg.integrations.lightning.framework import Callback
from swavg.integrations.recording import Recorder
from swavg.training import Snapshots

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class SnapshotCallback(Callback):
    """Saves snapshots that the command line reads, as :class:`swavg.training.Snapshots` does.

    Every ``every`` optimizer steps, or without it after each validation, the weights are saved
    into ``folder``; ``keep``, ``best``, ``metric``, ``mode`` and ``name`` are as there. What
    was logged is recorded with a snapshot only where validation took place at its very step. With
    ``ema``, the callback that keeps it, the averages are saved instead of the training weights,
    without those that are frozen (the base of a LoRA model).

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
        self._recorder = Recorder(self.snapshots, every)

    @property
    def state_key(self) -> str:
        return self._generate_state_key(
            folder=str(self.snapshots.folder), ema=self._ema is not None
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._ema is not None and self._ema not in trainer.callbacks:  # type: ignore[attr-defined]
            raise RequestError(
                "The EMACallback of a SnapshotCallback is not one of the trainer's.",
                hint="Give both to Trainer(callbacks=[...]).",
            )
        averages = any(each.evaluates for each in emas(trainer))
        self._recorder.measure(averages == (self._ema is not None), self._best)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._recorder.begin(trainer.global_step)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.flush(pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._recorder.done(trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._recorder.measured(trainer.global_step, trainer.callback_metrics)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # A run that goes on from this checkpoint does not come by here again.
        self.flush(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.flush(pl_module)

    def flush(self, model: LightningModule) -> None:
        """Save what is due. Otherwise that waits for what is still measured at this step."""
        self._recorder.flush(model, None if self._ema is None else self._ema.ema)
