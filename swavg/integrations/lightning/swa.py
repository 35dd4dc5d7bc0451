"""A running mean of the weights, which the model gets when training ends."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from swavg.integrations.lightning.saving import AveragingCallback
from swavg.integrations.swa import BaseSWACallback

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class SWACallback(BaseSWACallback, AveragingCallback):
    """Averages the weights from optimizer step ``start`` on, every ``every`` optimizer steps.

    ``start`` may be the share of the run that comes before, as 0.75; without ``every`` the weights
    are averaged at the end of each epoch. With ``lr`` the learning rate goes to it within
    ``anneal_steps`` steps from ``start`` on, or with ``lr_low`` in cycles, whatever a scheduler
    says (:class:`swavg.training.SWA`, of which ``device``, ``buffers`` and ``frozen`` are the
    ``options``). Accumulated batches are one step; with several optimizers the steps of all count,
    as in Lightning's ``global_step``.

    Training and validation see the training weights. When ``fit`` ends the model has the average
    (unless ``swap`` is False): ``test()`` and ``save_checkpoint()`` see it, and ``swa.swap()``
    gives the training weights back. What is loaded into the model, as by ``test(ckpt_path=...)``,
    replaces it there, and ``swa`` keeps it. Batch-norm statistics belong to other weights then:
    ``callback.swa.update_bn(loader, forward=lambda model, batch: model.net(batch[0]))``
    recomputes them.

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

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._before_step()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # The epoch's end, now: so that a checkpoint of this step has it.
        self._done(trainer.global_step, epoch_ends=trainer.is_last_batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._done(trainer.global_step, epoch_ends=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not when training ends: then others save the last training weights yet.
        super().on_fit_end(trainer, pl_module)
        if self._averaged_model is pl_module:
            self._end(pl_module)
