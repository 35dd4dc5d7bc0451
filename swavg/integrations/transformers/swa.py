"""A running mean of the weights, which the model gets when training ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from swavg.integrations.swa import BaseSWACallback
from swavg.integrations.transformers.framework import AveragingCallback


class SWACallback(BaseSWACallback, AveragingCallback):
    """Averages the weights from optimizer step ``start`` on (:class:`BaseSWACallback`).

    After training ``save_model()`` and ``evaluate()`` see the average; what ``swa.swap()`` gives
    back are with ``load_best_model_at_end`` the best weights.

    With each of the Trainer's checkpoints the average is saved as ``swa.safetensors`` beside the
    training weights, which ``swavg update`` continues, and so does
    ``train(resume_from_checkpoint=...)``, bit for bit. If there is none that is an error, unless
    ``start_anew`` is set. A checkpoint that lies elsewhere is found after :meth:`attach`.
    """

    file = "swa.safetensors"

    def __init__(self, *settings: Any, start_anew: bool = False, **options: Any) -> None:
        super().__init__(*settings, **options)
        self._start_anew = start_anew

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._averaged_model is kwargs["model"]:
            # Training goes on with its own weights.
            self._hide()
        self._total = state.max_steps
        self._begin_or_resume(kwargs["model"], args, state.global_step)
        self.step = state.global_step
        self._schedule_rates([kwargs["optimizer"]])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._before_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The epoch's end, now: so that a checkpoint of this step has it.
        ends = state.epoch is not None and float(state.epoch).is_integer()
        self._done(state.global_step, epoch_ends=ends)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._done(state.global_step, epoch_ends=True)

    def _saved(self, step: int) -> tuple[Mapping[str, Tensor], dict[str, Any] | None]:
        swa = self.swa
        if swa.n == 0:
            return {}, None
        return swa.views(frozen=False), {"method": "running mean", "n": swa.n, "step": step}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end(kwargs["model"])
