"""An EMA that validation sees."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from swavg.errors import RequestError
from swavg.integrations.lightning.framework import Callback
from swavg.integrations.recording import check_arguments
from swavg.training import EMA
from swavg.training.wrapped import is_sharded

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class EMACallback(Callback):
    """Keeps an EMA of the weights: updated after each optimizer step, whatever the accumulation.

    With ``evaluate`` validation, test and prediction see the averaged weights (not the sanity
    check); training goes on with its own. ``options`` are those of
    :class:`swavg.training.EMA`: ``warmup``, ``every``, ``device``, ``buffers``, ...

    A Lightning checkpoint, also one that is written during validation or of weights alone
    (``save_weights_only``), holds the training weights as its ``state_dict`` and the average in the
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
        if next(emas(trainer)) is self:
            pl_module.on_save_checkpoint = _Saves(trainer, pl_module)  # type: ignore[method-assign]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(hook := pl_module.on_save_checkpoint, _Saves):
            hook.remove()

    # ---- Training.

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if sum(each.evaluates for each in emas(trainer)) > 1:
            raise RequestError(
                "Two EMACallbacks would be evaluated at once.", hint="Give one evaluate=False."
            )
        if trainer.ckpt_path is not None and self._state is None:
            # Weights from a checkpoint without an average: that of earlier ones is none of theirs.
            self.ema = None
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
        if trainer.state.fn != "fit" and trainer.ckpt_path is not None and self._state is None:
            # The average of earlier weights is none of theirs.
            if self.evaluates and self.ema is not None:
                warnings.warn(
                    "The checkpoint has no average: its own weights are evaluated.", stacklevel=2
                )
            return
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
        # It is that exception that is to be seen, and the weights are back in any case.
        with suppress(RequestError):
            self._restore()

    # ---- State.

    def complete(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        """See to it that a checkpoint has the training weights as its ``state_dict``, whatever the
        model shows, and the average in the state of this callback, also one of weights alone."""
        if self._applied and self.ema is not None:
            self.ema.restore()
            own = trainer.strategy.lightning_module_state_dict()
            if self._options.get("in_place") or any(map(is_sharded, own.values())):
                # Else they keep their memory, whatever the model shows.
                own = {name: _copied(value) for name, value in own.items()}
            checkpoint["state_dict"] = own
            self.ema.apply_shadow()
        if "callbacks" not in checkpoint or self.state_key not in checkpoint["callbacks"]:
            checkpoint.setdefault("callbacks", {})[self.state_key] = self.state_dict()

    def state_dict(self) -> dict[str, Any]:
        return {} if self.ema is None else dict(self.ema.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # The model may not be on its device yet, or not be sharded.
        self._state = state_dict or None


class _Saves:
    """Called in place of a module's ``on_save_checkpoint``, which it calls first: Lightning tells
    its callbacks of no checkpoint of weights alone."""

    def __init__(self, trainer: Trainer, model: LightningModule) -> None:
        self._trainer, self._model = trainer, model
        self._hook: Callable[[dict[str, Any]], None] = model.on_save_checkpoint

    def __call__(self, checkpoint: dict[str, Any]) -> None:
        self._hook(checkpoint)
        for each in emas(self._trainer):
            each.complete(self._trainer, checkpoint)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the module has the method of its class, and no trainer with all its data.
        return getattr, (self._model, "on_save_checkpoint")

    def remove(self) -> None:
        """Leave the module as it was."""
        del self._model.__dict__["on_save_checkpoint"]


def _copied(value: Any) -> Any:
    return value.clone() if hasattr(value, "clone") else value


def emas(trainer: Trainer) -> Iterator[EMACallback]:
    """The EMACallbacks of ``trainer``."""
    return (each for each in trainer.callbacks if isinstance(each, EMACallback))  # type: ignore[attr-defined]
