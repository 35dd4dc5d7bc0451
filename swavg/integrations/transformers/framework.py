"""The framework's own base class, and what an average that belongs in its checkpoints does."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any

from torch import Tensor

from swavg.errors import InputError, MissingDependencyError, RequestError
from swavg.integrations.averaging import Averaging
from swavg.integrations.transformers.files import load_state, save_state

if TYPE_CHECKING:
    from transformers import Trainer
    from transformers import TrainerCallback as TrainerCallback
else:
    try:
        from transformers import TrainerCallback as TrainerCallback
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise MissingDependencyError(
            "swavg.integrations.transformers needs transformers.",
            hint="pip install transformers accelerate",
        ) from None


class AveragingCallback(Averaging[Any], TrainerCallback):
    """A callback whose average lies as ``file`` in each of the Trainer's checkpoints, and goes on
    from there; from one without it only with ``start_anew``."""

    file: str
    _start_anew = False
    _attached = False
    _resumed_from: str | None = None

    @abstractmethod
    def _saved(self, step: int) -> tuple[Mapping[str, Tensor], dict[str, Any] | None]:
        """The averaged weights to save, and how they came about."""

    def attach(self, trainer: Trainer) -> None:
        """Add the callback to ``trainer``, and note from where it goes on.

        Raises RequestError if it is attached already.
        """
        if self._attached:
            raise RequestError(f"The {type(self).__name__} is attached already.")
        self._attached = True
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        train: Callable[..., Any] = trainer.train

        @wraps(train)
        def train_from(
            resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
        ) -> Any:
            # The trainer tells its callbacks nothing of it.
            self._resumed_from = _folder(resume_from_checkpoint)
            return train(resume_from_checkpoint, *args, **kwargs)

        trainer.train = train_from  # type: ignore[method-assign]

    def _begin_or_resume(self, model: Any, args: Any, step: int) -> Any:
        """A new average of ``model``, or after some steps that of the checkpoint."""
        self._average = self._state = None
        if step:
            named = self._resumed_from or _folder(getattr(args, "resume_from_checkpoint", None))
            path = os.path.join(named or _checkpoint(args, step), self.file)
            if os.path.exists(path):
                self.load_state_dict(load_state(path))
            elif not self._start_anew:
                kind = type(self).__name__
                raise InputError(
                    path,
                    "no such file",
                    hint="The checkpoint was written without this callback."
                    f" {kind}(..., start_anew=True) starts from its weights.",
                )
        return self._ready(model)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = _checkpoint(args, state.global_step)
        if self._average is not None and os.path.isdir(folder):
            averaged, recipe = self._saved(state.global_step)
            path = os.path.join(folder, self.file)
            save_state(path, self.state_dict(), averaged, state.global_step, recipe)


def _checkpoint(args: Any, step: int) -> str:
    return os.path.join(args.output_dir, f"checkpoint-{step}")


def _folder(value: Any) -> str | None:
    return os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
