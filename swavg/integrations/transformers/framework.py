"""The framework's own base class, and how a run that goes on finds its checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from swavg.errors import MissingDependencyError

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


class Told(TrainerCallback):
    """A callback that is told whose averages evaluations see."""

    def evaluated(self, averages: TrainerCallback) -> None:
        """Evaluations see those of ``averages``."""
        raise NotImplementedError


class Resumed:
    """The checkpoint from which a trainer goes on, of which it does not tell its callbacks."""

    def __init__(self) -> None:
        self._named: str | None = None

    def watch(self, trainer: Trainer) -> None:
        """Note what ``train`` is called with."""
        train: Callable[..., Any] = trainer.train

        @wraps(train)
        def train_from(
            resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
        ) -> Any:
            self._named = _folder(resume_from_checkpoint)
            return train(resume_from_checkpoint, *args, **kwargs)

        trainer.train = train_from  # type: ignore[method-assign]

    def folder(self, args: Any, step: int) -> str:
        """The folder of the checkpoint that has done ``step`` steps."""
        named = self._named or _folder(getattr(args, "resume_from_checkpoint", None))
        return named or os.path.join(args.output_dir, f"checkpoint-{step}")


def _folder(value: Any) -> str | None:
    return os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
