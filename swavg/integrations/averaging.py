"""What every callback that keeps an average does, whatever its framework.

The average belongs to one model, goes on from a state that was loaded before there was that model,
and is in its place while it is evaluated.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Generic, Protocol, TypeVar

from swavg.errors import RequestError


class HasState(Protocol):
    """An average that can be saved, and goes on from what was."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


Average = TypeVar("Average", bound=HasState)


class Averaging(Generic[Average]):
    """Keeps one average of the model that is trained. A framework's callback derives from this and
    from the framework's own class, and tells it in its hooks what happens."""

    def __init__(self) -> None:
        super().__init__()
        self._average: Average | None = None
        self._averaged_model: Any = None
        self._state: Mapping[str, Any] | None = None

    @abstractmethod
    def _made(self, model: Any) -> Average:
        """A new average of ``model``."""

    def _has_average(self, model: Any) -> bool:
        """Whether there is an average of ``model``, or the state of one."""
        return self._state is not None or (
            self._average is not None and self._averaged_model is model
        )

    def _begin(self, model: Any, *, resumed: bool) -> Average:
        """The average with which training of ``model`` begins, or goes on. ``resumed``: the
        weights come from a checkpoint, and an average of earlier ones is none of theirs."""
        if resumed and self._state is None:
            self._average = None
            warnings.warn(
                "The run goes on without the average of before: a new one starts.",
                stacklevel=3,
            )
        return self._ready(model)

    def _ready(self, model: Any) -> Average:
        """The average of ``model``, with the state that was loaded."""
        if self._average is None or self._averaged_model is not model:
            self._average, self._averaged_model = self._made(model), model
        if self._state is not None:
            self._average.load_state_dict(self._state)
            self._state = None
        return self._average

    # ---- State.

    def state_dict(self) -> dict[str, Any]:
        """The state of the average; empty before training."""
        return {} if self._average is None else dict(self._average.state_dict())

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict` in the next run, or evaluation."""
        # The model may not be on its device yet, or not be sharded.
        self._state = state_dict if len(state_dict) > 0 else None


class Shadow(HasState, Protocol):
    """An average that can be in its model's place."""

    def apply_shadow(self) -> None: ...

    def restore(self) -> None: ...


Shown = TypeVar("Shown", bound=Shadow)


class Evaluated(Averaging[Shown]):
    """An average that is in the model's place while it is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self._applied = False

    def _show(self, model: Any) -> None:
        """Evaluation of ``model`` begins."""
        self._ready(model).apply_shadow()
        self._applied = True

    def _hide(self) -> None:
        """It ended; or it did not even begin."""
        if self._applied and self._average is not None:
            self._applied = False
            self._average.restore()

    def _give_up(self) -> None:
        """It ended with an error, which is the one to be seen; the weights are back in any case."""
        with suppress(RequestError):
            self._hide()

    @contextmanager
    def _shown(self, model: Any) -> Iterator[None]:
        """The model has the averaged weights in the block."""
        self._show(model)
        try:
            yield
        except BaseException:
            self._give_up()
            raise
        self._hide()

    @contextmanager
    def own_weights(self) -> Iterator[None]:
        """The model has its own weights in the block, whatever it showed, and shows it again."""
        applied = self._applied
        self._hide()
        try:
            yield
        finally:
            if applied:
                self._show(self._averaged_model)
