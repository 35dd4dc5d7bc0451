"""Checkpoints that have the training weights and the averages, whatever the model shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from swavg.integrations.averaging import Averaging
from swavg.integrations.lightning.framework import Callback

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class AveragingCallback(Averaging[Any], Callback):
    """A callback whose average belongs in every checkpoint of its trainer."""

    step: int
    """How many optimizer steps it was told of."""
    _begun = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # What an earlier run has loaded and not used.
        self._state = None
        self._begun = False
        if not isinstance(trainer.save_checkpoint, _SaveCheckpoint):
            trainer.save_checkpoint = _SaveCheckpoint(trainer)  # type: ignore[method-assign]

    def _begin(self, trainer: Trainer, model: LightningModule, *, resumed: bool) -> None:
        """Training starts, or goes on from the checkpoint that was loaded."""
        self._begun = True
        self._ready(model, resumed=resumed)
        self.step = trainer.global_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module, resumed=trainer.ckpt_path is not None)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._begun and trainer.ckpt_path is not None:
            # The checkpoint was of a run that had come to its end: no training took place.
            self._begin(trainer, pl_module, resumed=True)


class _SaveCheckpoint:
    """Called in place of a trainer's ``save_checkpoint``, through which all checkpoints go."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._save = trainer.save_checkpoint

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        trainer, model = self._trainer, self._trainer.lightning_module
        averaging = [
            each
            for each in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(each, AveragingCallback)
        ]
        with ExitStack() as stack:
            for each in averaging:
                if trainer.training and trainer.global_step > each.step:
                    # Saved by a signal, or a callback that comes before it.
                    each.on_train_batch_end(trainer, model, None, None, 0)
                stack.enter_context(each.own_weights())
            stack.enter_context(_states_added(model, averaging))
            self._save(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the trainer has the method of its class.
        return getattr, (self._trainer, "save_checkpoint")


@contextmanager
def _states_added(model: LightningModule, averaging: Sequence[AveragingCallback]) -> Iterator[None]:
    """In the block checkpoints of ``model`` get the states of its averages also where weights alone
    are saved: of those Lightning tells no callback."""
    hook, before = model.on_save_checkpoint, dict(vars(model))

    def with_states(checkpoint: dict[str, Any]) -> None:
        hook(checkpoint)
        for each in averaging:
            if state := each.state_dict():
                checkpoint.setdefault("callbacks", {}).setdefault(each.state_key, state)

    model.on_save_checkpoint = with_states  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.on_save_checkpoint
        if "on_save_checkpoint" in before:
            model.on_save_checkpoint = hook  # type: ignore[method-assign]
