"""A running mean of the weights, which the model gets when training ends."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from swavg.errors import RequestError
from swavg.integrations.course import Course, Plan
from swavg.integrations.recording import check_arguments, load_state, save_state
from swavg.integrations.transformers.framework import Resumed, TrainerCallback
from swavg.training import SWA
from swavg.training.schedule import Anneal

if TYPE_CHECKING:
    from transformers import Trainer

FILE = "swa.safetensors"


class SWACallback(TrainerCallback):
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

    def __init__(
        self,
        start: int | float,
        every: int | None = None,
        lr: float | Sequence[float] | None = None,
        *,
        lr_low: float | Sequence[float] | None = None,
        anneal_steps: int = 0,
        anneal: Anneal = "cos",
        swap: bool = True,
        start_anew: bool = False,
        **options: Any,
    ) -> None:
        self._plan = Plan(start, every, lr, lr_low, anneal_steps, anneal)
        check_arguments(SWA, options)
        self._options = options
        self._swap = swap
        self._start_anew = start_anew
        self._course: Course | None = None
        self._attached = False
        self._resumed = Resumed()

    @property
    def swa(self) -> SWA:
        """The average. Raises RequestError before training starts."""
        if self._course is None:
            raise RequestError("There is no average before training starts.")
        return self._course.swa

    def attach(self, trainer: Trainer) -> None:
        """Add the callback to ``trainer``, and note from where it goes on.

        Raises RequestError if it is attached already.
        """
        if self._attached:
            raise RequestError("The SWACallback is attached already.")
        self._attached = True
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        self._resumed.watch(trainer)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._course is not None and self._course.model is kwargs["model"]:
            # Training goes on with its own weights.
            self._course.own()
        self._course = Course(self._plan, kwargs["model"], state.max_steps, self._options)
        if state.global_step:
            path = os.path.join(self._resumed.folder(args, state.global_step), FILE)
            if os.path.exists(path) or not self._start_anew:
                self._course.load_state_dict(load_state(path))
        self._course.begin(state.global_step, [kwargs["optimizer"]])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._course is not None:
            self._course.before_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._course is not None:
            self._course.done(state.global_step)
            if state.epoch is not None and float(state.epoch).is_integer():
                # Now, so that a checkpoint of this step has it.
                self._course.epoch_done()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._course is not None:
            self._course.epoch_done()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        if self._course is None or not os.path.isdir(folder):
            return
        swa = self._course.swa
        held = swa.views(frozen=False) if swa.n else {}
        recipe = {"method": "running mean", "n": swa.n, "step": state.global_step}
        path = os.path.join(folder, FILE)
        written = recipe if swa.n else None
        save_state(path, self._course.state_dict(), held, state.global_step, written)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._course is not None:
            self._course.end(self._swap)
