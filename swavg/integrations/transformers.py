"""Callbacks for the Trainer of transformers: an EMA that evaluation sees, and snapshots.

>>> from swavg.integrations.transformers import EMACallback, SnapshotCallback
>>> ema = EMACallback(decay=0.999)
>>> trainer = Trainer(model, args, train_dataset=..., eval_dataset=...)
>>> ema.attach(trainer)
>>> trainer.add_callback(SnapshotCallback("snapshots", every=1000, keep=5, ema=ema))
>>> trainer.train()
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any

from torch import nn

from swavg.errors import MissingDependencyError, RequestError
from swavg.integrations.recording import Recorder, check_options, load_state, save_state
from swavg.training import EMA, Snapshots

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback
else:
    try:
        from transformers import TrainerCallback
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise MissingDependencyError(
            "swavg.integrations.transformers needs transformers.",
            hint="pip install 'swavg[transformers]'",
        ) from None

FILE = "ema.safetensors"
_NO_METRIC = ("_runtime", "_per_second", "_compilation_time")


class EMACallback(TrainerCallback):
    """Keeps an EMA of the weights: updated after each optimizer step, whatever the accumulation.

    :meth:`attach` it to the trainer: then ``evaluate`` and ``predict``, also those during
    training, see the averaged weights, and training goes on with its own. With ``evaluate`` False
    it may as well be given as one of the ``callbacks``. ``options`` are those of
    :class:`swavg.training.EMA`: ``warmup``, ``every``, ``device``, ``buffers``, ...

    With each of the Trainer's checkpoints the averages are saved as ``ema.safetensors`` beside the
    training weights; ``train(resume_from_checkpoint=...)`` goes on from it bit for bit. If there
    is none that is an error, unless ``start_anew`` is set: then the EMA starts from the weights as
    they are. ``load_best_model_at_end`` loads training weights; their average lies beside them.
    After training, evaluations go on to see the last average.
    """

    def __init__(
        self,
        decay: float = 0.999,
        *,
        evaluate: bool = True,
        start_anew: bool = False,
        **options: Any,
    ) -> None:
        self._options = {"decay": decay, **options}
        check_options(self._options)
        self.evaluates = evaluate
        self.ema: EMA | None = None
        """The average; None before training starts."""
        self._start_anew = start_anew
        self._trainer: Trainer | None = None
        self._resumed: str | None = None
        self._applied = False

    def attach(self, trainer: Trainer) -> None:
        """Add the callback to ``trainer``, and have it evaluate and predict with the averages.

        Raises RequestError if it is attached already.
        """
        if self._trainer is not None:
            raise RequestError("The EMACallback is attached already.")
        self._trainer = trainer
        callbacks = trainer.callback_handler.callbacks
        if self not in callbacks:
            trainer.add_callback(self)
        if sum(isinstance(each, EMACallback) and each.evaluates for each in callbacks) > 1:
            raise RequestError(
                "Two EMACallbacks would be evaluated at once.", hint="Give one evaluate=False."
            )
        trainer.train = self._remembering(trainer.train)  # type: ignore[method-assign]
        if self.evaluates:
            # The trainer tells its callbacks when an evaluation has ended, not when it starts.
            trainer.evaluate = self._averaged(trainer.evaluate)  # type: ignore[method-assign]
            trainer.predict = self._averaged(trainer.predict)  # type: ignore[method-assign]

    def _averaged(self, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(evaluate)
        def with_averages(*args: Any, **kwargs: Any) -> Any:
            # Of several data sets, evaluate calls itself for each.
            if self.ema is None or self._applied:
                return evaluate(*args, **kwargs)
            self._applied = True
            try:
                with self.ema.applied():
                    return evaluate(*args, **kwargs)
            finally:
                self._applied = False

        return with_averages

    def _remembering(self, train: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(train)
        def train_from(
            resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
        ) -> Any:
            self._resumed = _folder(resume_from_checkpoint)
            return train(resume_from_checkpoint, *args, **kwargs)

        return train_from

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.evaluates and self._trainer is None:
            raise RequestError(
                "The EMACallback does not know the trainer, whose evaluations it is to see.",
                hint="Call ema.attach(trainer), or build it with evaluate=False.",
            )
        if self.evaluates and self._trainer is not None:
            for each in self._trainer.callback_handler.callbacks:
                if isinstance(each, SnapshotCallback):
                    each.evaluated(self)
        self.ema = EMA(kwargs["model"], **self._options)
        if state.global_step:
            self._load(self.ema, args, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.ema is not None:
            self.ema.update()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        if self.ema is None or not os.path.isdir(folder):
            return
        save_state(os.path.join(folder, FILE), self.ema, state.global_step)

    def _load(self, ema: EMA, args: Any, step: int) -> None:
        named = self._resumed or _folder(getattr(args, "resume_from_checkpoint", None))
        path = os.path.join(named or os.path.join(args.output_dir, f"checkpoint-{step}"), FILE)
        if not os.path.exists(path) and self._start_anew:
            return
        load_state(path, ema)


def _folder(value: Any) -> str | None:
    return os.fspath(value) if isinstance(value, (str, os.PathLike)) else None


class SnapshotCallback(TrainerCallback):
    """Saves snapshots that the command line reads, as :class:`swavg.training.Snapshots` does.

    Every ``every`` optimizer steps, or without it after each evaluation, the weights are saved
    into ``folder``; ``keep``, ``best``, ``metric``, ``mode`` and ``name`` are as there. What an
    evaluation found is recorded with the snapshot of its very step. With ``ema``, the callback
    that keeps it, the averages are saved instead of the training weights.

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
        self._training = False
        self._recorder = Recorder(self.snapshots, every)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._recorder.begin(state.global_step)
        self._training = True
        if self._ema is not None and not self._ema.evaluates:
            self._recorder.not_measured(self._best)

    def evaluated(self, ema: EMACallback) -> None:
        """Evaluations see the averages of ``ema``. Raises RequestError if others are saved, and
        the best of them."""
        if self._ema is not ema:
            self._recorder.not_measured(self._best)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._flush(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._recorder.done(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step and self._training:
            self._recorder.measured(state.global_step, _measured(kwargs.get("metrics") or {}))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A run that goes on from this checkpoint does not come by here again.
        self._flush(kwargs["model"])

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The last of training, before the best model is loaded in place of this one.
        if "train_runtime" in (kwargs.get("logs") or {}):
            self._flush(kwargs["model"])
            self._training = False

    def _flush(self, model: nn.Module) -> None:
        self._recorder.flush(model, None if self._ema is None else self._ema.ema)


def _measured(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What says something of the model, and not of the machine."""
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and name != "epoch" and not name.endswith(_NO_METRIC)
    }
