"""An EMA that validation sees."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from swavg.integrations.callbacks import BaseEMACallback, evaluated_of
from swavg.integrations.lightning.saving import AveragingCallback

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class EMACallback(BaseEMACallback, AveragingCallback):
    """Keeps an EMA of the weights (:class:`BaseEMACallback`).

    With ``evaluate`` validation, test and prediction see the averaged weights (not the sanity
    check); training goes on with its own.

    A Lightning checkpoint, also one that is written during validation or of weights alone
    (``save_weights_only``), holds the training weights as its ``state_dict`` and the average in the
    state of this callback, with which ``fit(ckpt_path=...)`` goes on bit for bit, and which
    ``test(ckpt_path="best")`` evaluates. ``callback.ema.averaged()`` are the weights to keep.
    Another ``fit`` of the same model goes on with its average. Of two in one trainer each needs a
    class of its own (``class Slow(EMACallback): pass``), under whose name its state is kept.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        evaluated_of(trainer.callbacks)  # type: ignore[attr-defined]
        super().on_train_start(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # While gradients accumulate, no step is done.
        self._done(trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.evaluates or trainer.sanity_checking:
            return
        if trainer.state.fn != "fit" and trainer.ckpt_path is not None and self._state is None:
            # The average of earlier weights is none of theirs.
            if self._average is not None:
                warnings.warn(
                    "The checkpoint has no average: its own weights are evaluated.", stacklevel=2
                )
        elif self._has_average(pl_module):
            self._show(pl_module)

    on_test_start = on_predict_start = on_validation_start

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hide()

    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, *_: Any) -> None:
        self._give_up()
