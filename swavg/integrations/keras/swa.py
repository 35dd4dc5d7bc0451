"""Stochastic weight averaging (SWA) of variables while they are trained."""

from __future__ import annotations

from typing import Any

from swavg.errors import RequestError
from swavg.integrations.keras.averages import Averages
from swavg.integrations.keras.framework import whole


class SWA(Averages):
    """The running mean of ``of``, a Keras model or a list of variables, from step ``start`` on, at
    every ``every``-th step.

        >>> swa = SWA(model, start=1000, every=50)
        >>> for batch in batches:
        ...     train(batch)
        ...     swa.step()  # after each optimizer step; also inside a tf.function
        >>> swa.swap()

    Steps count from 1. After step s > ``start`` with ``(s - start) % every == 0`` the values are
    averaged in: ``a <- a + (w - a) / (n + 1)``, the first is a copy. With ``start=None`` only
    :meth:`update` averages. Learning rates are the optimizer's. Batch-norm statistics are those of
    the last weights that were averaged in.
    """

    _divides = True

    def __init__(self, of: Any, start: int | None = None, every: int = 1) -> None:
        settings = {"start": start, "every": every}
        super().__init__(of, _NEVER if start is None else start, every, settings)

    @property
    def n(self) -> int:
        """Of how many values the average is the mean."""
        return int(whole(self._updates))

    def step(self, step: Any = None) -> None:
        """Note that an optimizer step was done, and average if it is time. ``step`` is the number
        of all steps done, if they were several. Raises RequestError while swapped."""
        self.advance(step)

    def update(self) -> None:
        """Average the present values in, whatever the step."""
        with self._own_weights_for("update"):
            self._update()

    def _factor(self, t: Any) -> Any:
        return t

    def apply_shadow(self) -> None:
        """As :meth:`EMA.apply_shadow`. Raises RequestError if nothing was averaged yet."""
        self._require_average()
        super().apply_shadow()

    def averaged(self) -> Any:
        """As :meth:`EMA.averaged`. Raises RequestError if nothing was averaged yet."""
        self._require_average()
        return super().averaged()

    def swap(self) -> None:
        """Exchange the variables' values and the averaged ones; again, back."""
        if self.is_applied:
            self.restore()
        else:
            self.apply_shadow()

    swapped = Averages.applied

    def _require_average(self) -> None:
        if self.n == 0:
            raise RequestError(f"Nothing was averaged yet, after {self.steps} steps.")


_NEVER = 1 << 62
"""A step that no training comes to."""
