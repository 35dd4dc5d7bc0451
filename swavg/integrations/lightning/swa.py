"""A running mean of the weights, which the model gets when training ends."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from swavg.integrations.lightning.saving import AveragingCallback
from swavg.integrations.swa import BaseSWACallback

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class SWACallback(BaseSWACallback, AveragingCallback):
    """Averages the weights from optimizer step ``start`` on (:class:`BaseSWACallback`).

    With several optimizers the steps of all count, as in Lightning's ``global_step``. After ``fit``
    ``test()`` and ``save_checkpoint()`` see the average. What is loaded into the model then, as by
    ``test(ckpt_path=...)``, replaces it there, and ``swa`` keeps it.

    A Lightning checkpoint that is written during training, also one of weights alone, holds the
    training weights, and the average in the state of this callback, with which
    ``fit(ckpt_path=...)`` goes on bit for bit.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self._averaged_model is pl_module:
            # Now, so that every callback sees its own weights.
            self._hide()

    def _begin(self, trainer: Trainer, model: LightningModule, *, resumed: bool) -> None:
        if resumed or not trainer.global_step == self.step > 0:
            # Unless the same trainer is told to go on, a run has an average of its own.
            self._average = None
        # By hand, any number of optimizer steps may be done for a batch.
        known = model.automatic_optimization
        self._total = trainer.estimated_stepping_batches if known else math.inf
        super()._begin(trainer, model, resumed=resumed)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._schedule_rates(trainer.optimizers)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._before_step()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # The epoch's end, now: so that a checkpoint of this step has it.
        self._done(trainer.global_step, epoch_ends=trainer.is_last_batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._done(trainer.global_step, epoch_ends=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not when training ends: then others save the last training weights yet.
        super().on_fit_end(trainer, pl_module)
        if self._averaged_model is pl_module:
            self._end(pl_module)
