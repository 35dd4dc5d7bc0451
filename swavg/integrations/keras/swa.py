"""Stochastic weight averaging (SWA) of variables while they are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from swavg.errors import RequestError
from swavg.integrations.keras.averages import Averages
from swavg.integrations.keras.framework import crossed, must_increase, when, whole
from swavg.weights.checks import check_count


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
        if start is not None:
            check_count("start", start, 0)
        check_count("every", every)
        self._start_step = start
        self._every = every
        super().__init__(of, ("n", "steps"), {"start": start, "every": every})

    @property
    def n(self) -> int:
        """Of how many values the average is the mean."""
        return int(whole(self._counters["n"]))

    @property
    def steps(self) -> int:
        """How many steps were done."""
        return int(whole(self._counters["steps"]))

    def skip_to(self, step: int) -> None:
        """Count from ``step``, without averaging."""
        self._counters["steps"].assign(step)

    def step(self, step: Any = None) -> None:
        """Note that an optimizer step was done, and average if it is time. ``step`` is the number
        of all steps done, if they were several. Raises RequestError while swapped."""
        before = self._forbid_shown("do a step", whole(self._counters["steps"]))
        now = before + 1 if step is None else must_increase(before, whole(step))
        self._counters["steps"].assign(now)
        if self._start_step is not None:
            when(crossed(before, now, self._every, self._start_step), self.update)

    def update(self) -> None:
        """Average the present values in, whatever the step."""
        n = self._counters["n"]
        # In a graph, what is refused is not counted either: the count goes through the check.
        count = self._forbid_shown("update", whole(n)) + 1
        self._advance(count)
        n.assign(count)

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

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """:meth:`applied`."""
        with self.applied():
            yield

    def _require_average(self) -> None:
        if self.n == 0:
            raise RequestError(f"Nothing was averaged yet, after {self.steps} steps.")
