"""A running mean of the weights, which the model gets when training ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from swavg.integrations.swa import BaseSWACallback
from swavg.integrations.transformers.framework import AveragingCallback


class SWACallback(BaseSWACallback, AveragingCallback):
    """Averages the weights from optimizer step ``start`` on, every ``every`` optimizer steps.

    ``start`` may be the share of the run that comes before, as 0.75; without ``every`` the weights
    are averaged at the end of each epoch. With ``lr`` the learning rate goes to it within
    ``anneal_steps`` steps from ``start`` on, or with ``lr_low`` in cycles, whatever the Trainer's
    scheduler says (:class:`swavg.training.SWA`, of which ``device``, ``buffers`` and ``frozen``
    are the ``options``). Accumulated batches are one step.

    Training and evaluations during it see the training weights. When training ends the model has
    the average (unless ``swap`` is False): ``save_model()`` and ``evaluate()`` see it, and
    ``swa.swap()`` gives its own weights back (with ``load_best_model_at_end``, the best ones).
    Batch-norm statistics belong to other weights then: ``callback.swa.update_bn(loader)``
    recomputes them.

    With each of the Trainer's checkpoints the average is saved as ``swa.safetensors`` beside the
    training weights, which ``swavg update`` continues, and so does
    ``train(resume_from_checkpoint=...)``, bit for bit. If there is none that is an error, unless
    ``start_anew`` is set. A checkpoint that lies elsewhere is found after :meth:`attach`.
    """

    file = "swa.safetensors"

    def __init__(
        self,
        start: int | float,
        every: int | None = None,
        lr: float | Sequence[float] | None = None,
        *,
        start_anew: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(start, every, lr, **options)
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
