"""What every callback that keeps an average does, whatever its framework."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

from swavg.errors import RequestError

Average = TypeVar("Average", bound=Any)
"""A :class:`swavg.training.EMA` or ``SWA``, or one of :mod:`swavg.integrations.keras`."""


class Averaging(Generic[Average]):
    """Keeps one average of the model that is trained. A framework's callback derives from this and
    from the framework's own class, and tells it in its hooks what happens.

    The average belongs to one model, goes on from a state that was loaded before there was that
    model, and may be in its place while it is evaluated.
    """

    def __init__(self) -> None:
        super().__init__()
        self._average: Average | None = None
        self._averaged_model: Any = None
        self._state: Mapping[str, Any] | None = None
        self._shown = False

    @abstractmethod
    def _made(self, model: Any) -> Average:
        """A new average of ``model``."""

    def _needed(self) -> Average:
        if self._average is None:
            raise RequestError(
                "There is no average before training begins.",
                hint="It begins with the first run that has this callback among its own.",
            )
        return self._average

    def _has_average(self, model: Any) -> bool:
        """Whether there is an average of ``model``, or the state of one."""
        made = self._average is not None and self._averaged_model is model
        return made or self._state is not None

    def _ready(self, model: Any, *, resumed: bool = False) -> Average:
        """The average of ``model``, with the state that was loaded. ``resumed``: its weights come
        from a checkpoint, and an average of earlier ones is none of theirs."""
        if resumed and self._state is None:
            self._average = None
            warnings.warn(
                "The run goes on without the average of before: a new one starts.", stacklevel=2
            )
        if self._average is None or self._averaged_model is not model:
            self._average, self._averaged_model = self._made(model), model
        if self._state is not None:
            self._load(self._average, self._state)
            self._state = None
        return self._average

    # ---- State.

    def _load(self, average: Average, state: Mapping[str, Any]) -> None:
        average.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """The state of the average, also one that was loaded and waits for the model; empty before
        training."""
        if self._state is not None:
            return dict(self._state)
        return {} if self._average is None else dict(self._average.state_dict())

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict` in the next run, or evaluation."""
        if not isinstance(state_dict, Mapping):
            raise RequestError(
                f"The state is a {type(state_dict).__name__}, and no mapping.",
                hint="Give what state_dict() returned, or np.load and torch.load of its file.",
            )
        # The model may not be on its device yet, or not be sharded.
        self._state = state_dict if len(state_dict) > 0 else None

    # ---- Evaluation.

    def _show(self, model: Any) -> None:
        """Evaluation begins: ``model`` gets the average."""
        self._ready(model).apply_shadow()
        self._shown = True

    def _hide(self) -> None:
        """Evaluation ended, if it began: the model has its own weights."""
        if self._shown and self._average is not None:
            self._shown = False
            self._average.restore()

    def _give_up(self) -> None:
        """It ended with an error, which is the one to be seen; the weights are back in any case."""
        with suppress(RequestError):
            self._hide()

    @contextmanager
    def own_weights(self) -> Iterator[None]:
        """The model has its own weights in the block, and shows again what it showed."""
        if not self._shown:
            yield
            return
        self._hide()
        try:
            yield
        finally:
            self._show(self._averaged_model)
