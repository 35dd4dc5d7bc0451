"""When a snapshot is made, whatever the framework: once all is known that was measured of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from swavg.weights.checks import check_count


class Recording:
    """Saves the weights of a step before the next one. ``every`` counts optimizer steps; None
    means after each evaluation. A framework's callback derives from this and from the framework's
    own class, and tells it in its hooks what happens."""

    def __init__(self, every: int | None) -> None:
        super().__init__()
        if every is not None:
            check_count("every", every)
        self._every = every
        self._measures = True
        """Whether the weights that are evaluated are those that are saved."""
        self._step = 0
        self._due = False
        self._pending = False
        self._metrics: dict[str, float] = {}

    @abstractmethod
    def _save(self, model: Any, step: int, metrics: Mapping[str, float]) -> None:
        """Save the weights of ``model``, which are its own, or their average."""

    def _begin(self, step: int) -> None:
        """Training starts, or goes on, at ``step``, of which nothing is to be saved."""
        self._step, self._metrics = step, {}
        self._due = self._pending = False

    def _done(self, step: int) -> None:
        """``step`` optimizer steps are done, in all."""
        if step == self._step:
            return
        # Two optimizers may do two steps at once: the multiple itself may be passed over.
        self._due = self._every is not None and step // self._every > self._step // self._every
        self._step, self._metrics, self._pending = step, {}, self._due

    def _measured(self, step: int, metrics: Mapping[str, Any]) -> None:
        """The weights of ``step`` were evaluated."""
        self._done(step)
        if self._measures:
            self._metrics |= {name: float(value) for name, value in metrics.items()}
        # Of a step that has a snapshot already, a new one with what was measured since.
        self._pending = self._every is None or self._due

    def flush(self, model: Any) -> None:
        """Save what is due. Otherwise that waits for what is still measured at this step."""
        if self._pending:
            self._pending = False
            self._save(model, self._step, self._metrics)
