"""Callbacks for Lightning: an EMA that validation sees, and snapshots for the command line.

    >>> from swavg.integrations.lightning import EMACallback, SnapshotCallback
    >>> ema = EMACallback(decay=0.999)
    >>> keeping = SnapshotCallback("snapshots", every=1000, keep=5, ema=ema)
    >>> Trainer(callbacks=[ema, keeping])

For ``lightning`` and for ``pytorch_lightning``: with both installed, for that which was imported
first.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from swavg.errors import MissingDependencyError, RequestError
from swavg.integrations.recording import Recorder, check_options
from swavg.training import EMA, Snapshots

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:

    def _callback() -> type:
        from importlib import import_module

        names = ["lightning.pytorch", "pytorch_lightning"]
        # What the user's own code has imported is what their Trainer is of.
        for name in sorted(names, key=lambda name: name not in sys.modules):
            try:
                return import_module(name).Callback
            except ModuleNotFoundError as error:
                if error.name not in (name, name.partition(".")[0]):
                    raise
        raise MissingDependencyError(
            "swavg.integrations.lightning needs Lightning.", hint="pip install 'swavg[lightning]'"
        )

    Callback = _callback()


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
        check_options(self._options)
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
        if sum(each.evaluates for each in _emas(trainer)) > 1:
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


class SnapshotCallback(Callback):
    """Saves snapshots that the command line reads, as :class:`swavg.training.Snapshots` does.

    Every ``every`` optimizer steps, or without it after each validation, the weights are saved
    into ``folder``; ``keep``, ``best``, ``metric``, ``mode`` and ``name`` are as there. What
    was logged is recorded with a snapshot only where validation took place at its very step. With
    ``ema``, the callback that keeps it, the averages are saved instead of the training weights.

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
        if any(each.evaluates for each in _emas(trainer)) != (self._ema is not None):
            self._recorder.not_measured(self._best)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._recorder.begin(trainer.global_step)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._flush(pl_module)

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
        self._flush(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._flush(pl_module)

    def _flush(self, model: LightningModule) -> None:
        self._recorder.flush(model, None if self._ema is None else self._ema.ema)


def _emas(trainer: Trainer) -> Iterator[EMACallback]:
    return (each for each in trainer.callbacks if isinstance(each, EMACallback))  # type: ignore[attr-defined]
