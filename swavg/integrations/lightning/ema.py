"""An EMA that validation sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from swavg.errors import RequestError
from swavg.integrations.lightning.framework import Callback
from swavg.integrations.recording import check_arguments
from swavg.training import EMA

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class EMACallback(Callback):
    """Keeps an EMA of the weights: updated after each optimizer step, whatever the accumulation.

    With ``evaluate`` validation, test and prediction see the averaged weights (not the sanity
    check); training goes on with its own. ``options`` are those of
    :class:`swavg.training.EMA`: ``warmup``, ``every``, ``device``, ``buffers``, ...

    A Lightning checkpoint holds the training weights as its ``state_dict`` and the average in the
    state of this callback, with which ``fit(ckpt_path=...)`` goes on bit for bit, and which
    ``test(ckpt_path="best")`` evaluates. ``ema.averaged()`` are the weights to keep.
    """

    def __init__(self, decay: float = 0.999, *, evaluate: bool = True, **options: Any) -> None:
        self._options = {"decay": decay, **options}
        check_arguments(EMA, self._options)
        self.evaluates = evaluate
        self.ema: EMA | None = None
        """The average; None before training starts."""
        self._model: LightningModule | None = None
        self._state: Mapping[str, Any] | None = None
        self._seen = 0
        self._applied = False

    def _ready(self, model: LightningModule) -> EMA:
        """The average of ``model``, with the state that was loaded."""
        if self.ema is None or self._model is not model:
            self.ema = EMA(model, **self._options)
            self._model = model
        if self._state is not None:
            self.ema.load_state_dict(self._state)
            self._state = None
        return self.ema

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # What an earlier run has loaded and not used.
        self._state = None

    def _forget(self, trainer: Trainer) -> None:
        """Weights from a checkpoint without an average: that of earlier ones is none of theirs."""
        if trainer.ckpt_path is not None and self._state is None:
            self.ema = None

    # ---- Training.

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if sum(each.evaluates for each in emas(trainer)) > 1:
            raise RequestError(
                "Two EMACallbacks would be evaluated at once.", hint="Give one evaluate=False."
            )
        self._forget(trainer)
        self._ready(pl_module)
        self._seen = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # While gradients accumulate, no step is done.
        if trainer.global_step > self._seen and self.ema is not None:
            self._seen = trainer.global_step
            self.ema.update()

    # ---- Evaluation.

    def _apply(self, trainer: Trainer, model: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._forget(trainer)
        known = self.ema is not None and self._model is model
        if self.evaluates and not trainer.sanity_checking and (known or self._state is not None):
            self._ready(model).apply_shadow()
            self._applied = True

    def _restore(self) -> None:
        if self._applied and self.ema is not None:
            self._applied = False
            self.ema.restore()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._apply(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._apply(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._apply(trainer, pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._restore()

    # ---- State.

    def state_dict(self) -> dict[str, Any]:
        return {} if self.ema is None else dict(self.ema.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # The model may not be on its device yet, or not be sharded.
        self._state = state_dict or None


def emas(trainer: Trainer) -> Iterator[EMACallback]:
    """The EMACallbacks of ``trainer``."""
    return (each for each in trainer.callbacks if isinstance(each, EMACallback))  # type: ignore[attr-defined]
