"""An EMA that evaluation sees."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any

from torch import Tensor

from swavg.errors import RequestError
from swavg.integrations.callbacks import (
    BaseEMACallback,
    BaseSnapshotCallback,
    evaluated_of,
    recipe_of,
)
from swavg.integrations.transformers.files import load_state
from swavg.integrations.transformers.framework import AveragingCallback

if TYPE_CHECKING:
    from transformers import Trainer


class EMACallback(BaseEMACallback, AveragingCallback):
    """Keeps an EMA of the weights (:class:`BaseEMACallback`).

    :meth:`attach` it to the trainer: then ``evaluate`` and ``predict``, also those during
    training, see the averaged weights, and training goes on with its own. With ``evaluate`` False
    it may as well be given as one of the ``callbacks``.

    With each of the Trainer's checkpoints the averages are saved as ``ema.safetensors`` beside the
    training weights; ``train(resume_from_checkpoint=...)`` goes on from it bit for bit. If there
    is none that is an error, unless ``start_anew`` is set: then the EMA starts from the weights as
    they are. Frozen weights are not saved with them. ``load_best_model_at_end`` loads the best
    checkpoint's averages too; else evaluations after training go on to see the last. Each ``train``
    that does not resume starts a new EMA.

    ``save_model`` writes the training weights, and says so; called during an evaluation, the
    averages that the model has then, and so in a block ``with callback.ema.applied()``.
    """

    file = "ema.safetensors"

    def __init__(self, decay: float = 0.999, *, start_anew: bool = False, **options: Any) -> None:
        super().__init__(decay, **options)
        self._start_anew = start_anew
        self._callbacks: list[Any] = []

    def attach(self, trainer: Trainer) -> None:
        """Add the callback to ``trainer``, and have it evaluate and predict with the averages.

        Raises RequestError if it is attached already.
        """
        super().attach(trainer)
        self._callbacks = trainer.callback_handler.callbacks
        evaluated_of(self._callbacks)
        trainer.save_model = self._told(trainer.save_model)  # type: ignore[method-assign]
        if self.evaluates:
            # The trainer tells its callbacks when an evaluation has ended, not when it starts.
            trainer.evaluate = self._averaged(trainer.evaluate)  # type: ignore[method-assign]
            trainer.predict = self._averaged(trainer.predict)  # type: ignore[method-assign]

    def _averaged(self, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(evaluate)
        def with_averages(*args: Any, **kwargs: Any) -> Any:
            # Of several data sets, evaluate calls itself for each.
            if self._average is None or self._shown:
                return evaluate(*args, **kwargs)
            self._show(self._averaged_model)
            try:
                result = evaluate(*args, **kwargs)
            except BaseException:
                self._give_up()
                raise
            self._hide()
            return result

        return with_averages

    def _told(self, save: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(save)
        def save_and_tell(
            output_dir: str | None = None, _internal_call: bool = False, **kwargs: Any
        ) -> Any:
            if _internal_call:
                # A checkpoint: it has the training weights, and the averages beside them.
                with self.own_weights():
                    return save(output_dir, _internal_call, **kwargs)
            result = save(output_dir, _internal_call, **kwargs)
            if self._shown:
                told = "the averages, which the model has during an evaluation."
            else:
                told = (
                    "the training weights. For the averages, which also lie as"
                    f" {self.file} in each checkpoint: with callback.ema.applied():"
                    " trainer.save_model(...)"
                )
            average = self._average
            if average is not None and (self._shown or not average.is_applied):
                warnings.warn(f"save_model() wrote {told}", stacklevel=2)
            return result

        return save_and_tell

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.evaluates:
            if not self._attached:
                raise RequestError(
                    "The EMACallback does not know the trainer, whose evaluations it is to see.",
                    hint="Call ema.attach(trainer), or build it with evaluate=False.",
                )
            for each in self._callbacks:
                if isinstance(each, BaseSnapshotCallback):
                    each.evaluated(self)
        self._begin_or_resume(kwargs["model"], args, state.global_step)
        self.step = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._done(state.global_step)

    def _saved(self, step: int) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        assert self._average is not None
        return self._average.views(frozen=False), recipe_of(self._average, step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        if self._average is not None and best is not None:
            path = os.path.join(best, self.file)
            if os.path.exists(path):
                # The model has its training weights now.
                self._average.load_state_dict(load_state(path))
