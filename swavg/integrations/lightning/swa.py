"""A running mean of the weights, which the model gets when training ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from swavg.errors import RequestError
from swavg.integrations.course import Course, Plan
from swavg.integrations.lightning.framework import Callback
from swavg.integrations.recording import check_arguments
from swavg.training import SWA
from swavg.training.schedule import Anneal

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class SWACallback(Callback):
    """Averages the weights from optimizer step ``start`` on, every ``every`` optimizer steps.

    ``start`` may be the share of the run that comes before, as 0.75; without ``every`` the weights
    are averaged at the end of each epoch. With ``lr`` the learning rate goes to it within
    ``anneal_steps`` steps from ``start`` on, or with ``lr_low`` in cycles, whatever a scheduler
    says (:class:`swavg.training.SWA`, of which ``device``, ``buffers`` and ``frozen`` are the
    ``options``). Accumulated batches are one step; with several optimizers the steps of all count,
    as in Lightning's ``global_step``.

    Training and validation see the training weights. When ``fit`` ends the model has the average
    (unless ``swap`` is False): ``test()`` and ``save_checkpoint()`` see it, and ``swa.swap()``
    gives the training weights back. What is loaded into the model, as by ``test(ckpt_path=...)``,
    replaces it there, and ``swa`` keeps it. Batch-norm statistics belong to other weights then:
    ``callback.swa.update_bn(loader, forward=lambda model, batch: model.net(batch[0]))``
    recomputes them.

    A Lightning checkpoint that is written during training holds the training weights, and the
    average in the state of this callback, with which ``fit(ckpt_path=...)`` goes on bit for bit.
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
        **options: Any,
    ) -> None:
        self._plan = Plan(start, every, lr, lr_low, anneal_steps, anneal)
        check_arguments(SWA, options)
        self._options = options
        self._swap = swap
        self._course: Course | None = None
        self._state: Mapping[str, Any] | None = None

    @property
    def swa(self) -> SWA:
        """The average. Raises RequestError before training starts."""
        if self._course is None:
            raise RequestError("There is no average before training starts.")
        return self._course.swa

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # What an earlier run has loaded and not used.
        self._state = None
        if stage == "fit" and self._course is not None and self._course.model is pl_module:
            # Training goes on with its own weights; now, so that every callback sees them.
            self._course.own()

    def _ready(self, trainer: Trainer, pl_module: LightningModule) -> Course:
        """The course of this run, with the state that was loaded."""
        # The same trainer, told to go on; any other run has an average of its own.
        goes_on = (
            self._course is not None
            and self._course.model is pl_module
            and trainer.ckpt_path is None
            and trainer.global_step == self._course.step > 0
        )
        if self._course is None or not goes_on:
            # By hand, any number of optimizer steps may be done for a batch.
            known = pl_module.automatic_optimization
            total = trainer.estimated_stepping_batches if known else math.inf
            self._course = Course(self._plan, pl_module, total, self._options)
        if self._state is not None:
            self._course.load_state_dict(self._state)
            self._state = None
        return self._course

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ready(trainer, pl_module).begin(trainer.global_step, trainer.optimizers)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._course is not None:
            self._course.before_step()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._course is not None:
            self._course.done(trainer.global_step)
            if trainer.is_last_batch:
                # Now, so that a checkpoint of this step has it.
                self._course.epoch_done()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._course is not None:
            self._course.epoch_done()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not when training ends: then others save the last training weights yet.
        if self._state is not None:
            # The checkpoint was of a run that had come to its end: no training took place.
            self._ready(trainer, pl_module).step = trainer.global_step
        if self._course is not None and self._course.model is pl_module:
            self._course.end(self._swap)

    # ---- State.

    def state_dict(self) -> dict[str, Any]:
        # A checkpoint of the averaged weights is the result, and not to be continued.
        if self._course is None or self._course.swa.is_swapped:
            return {}
        return self._course.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # The model may not be on its device yet, or not be sharded.
        self._state = state_dict or None
