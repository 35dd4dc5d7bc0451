"""An EMA that evaluation sees."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from swavg.errors import RequestError
from swavg.integrations.recording import check_arguments, load_state, recipe_of, save_state
from swavg.integrations.transformers.framework import Resumed, Told, TrainerCallback
from swavg.training import EMA

if TYPE_CHECKING:
    from transformers import Trainer

FILE = "ema.safetensors"


class EMACallback(TrainerCallback):
    """Keeps an EMA of the weights: updated after each optimizer step, whatever the accumulation.

    :meth:`attach` it to the trainer: then ``evaluate`` and ``predict``, also those during
    training, see the averaged weights, and training goes on with its own. With ``evaluate`` False
    it may as well be given as one of the ``callbacks``. ``options`` are those of
    :class:`swavg.training.EMA`: ``warmup``, ``every``, ``device``, ``buffers``, ...

    With each of the Trainer's checkpoints the averages are saved as ``ema.safetensors`` beside the
    training weights; ``train(resume_from_checkpoint=...)`` goes on from it bit for bit. If there
    is none that is an error, unless ``start_anew`` is set: then the EMA starts from the weights as
    they are. Frozen weights are not saved with them. ``load_best_model_at_end`` loads the best
    checkpoint's averages too; else evaluations after training go on to see the last.
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
        check_arguments(EMA, self._options)
        self.evaluates = evaluate
        self.ema: EMA | None = None
        """The average; None before training starts."""
        self._start_anew = start_anew
        self._trainer: Trainer | None = None
        self._resumed = Resumed()
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
        self._resumed.watch(trainer)
        trainer.save_model = self._told(trainer.save_model)  # type: ignore[method-assign]
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

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.evaluates and self._trainer is None:
            raise RequestError(
                "The EMACallback does not know the trainer, whose evaluations it is to see.",
                hint="Call ema.attach(trainer), or build it with evaluate=False.",
            )
        if self.evaluates and self._trainer is not None:
            for each in self._trainer.callback_handler.callbacks:
                if isinstance(each, Told):
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
        recipe = recipe_of(self.ema, state.global_step)
        save_state(
            os.path.join(folder, FILE),
            self.ema.state_dict(),
            self.ema.views(frozen=False),
            state.global_step,
            recipe,
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        if self.ema is not None and best is not None and os.path.exists(os.path.join(best, FILE)):
            # The model has its training weights now.
            self.ema.load_state_dict(load_state(os.path.join(best, FILE)))

    def _told(self, save: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(save)
        def save_and_tell(
            output_dir: str | None = None, _internal_call: bool = False, **kwargs: Any
        ) -> Any:
            result = save(output_dir, _internal_call, **kwargs)
            if self.ema is not None and not _internal_call:
                warnings.warn(
                    "save_model() wrote the training weights; the averages are"
                    f" callback.ema.averaged(), and lie as {FILE} in each checkpoint.",
                    stacklevel=2,
                )
            return result

        return save_and_tell

    def _load(self, ema: EMA, args: Any, step: int) -> None:
        path = os.path.join(self._resumed.folder(args, step), FILE)
        if not os.path.exists(path) and self._start_anew:
            return
        ema.load_state_dict(load_state(path))
