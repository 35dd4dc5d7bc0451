"""Learning rates for stochastic weight averaging: annealed to a constant, or cyclic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from swavg.errors import RequestError
from swavg.weights.checks import check_count

Anneal = Literal["cos", "linear"]


def annealed(i: int, steps: int, first: float, last: float, how: Anneal = "cos") -> float:
    """The rate of step ``i`` (from 1) on the way from ``first`` to ``last`` in ``steps`` steps.

    ``last x + first (1 - x)`` with ``x = i/steps`` (linear) or ``(1 - cos(pi i/steps))/2`` (cos):
    what torch's SWALR sets in its i-th ``step()``, to the last bit or one beside it (it goes from
    rate to rate). ``last`` from step ``steps`` on.
    """
    t = min(1.0, i / max(1, steps))
    if t == 1:
        return last
    x = t if how == "linear" else (1 - math.cos(math.pi * t)) / 2
    return last * x + first * (1 - x)


def cyclic(i: int, cycle: int, high: float, low: float) -> float:
    """The rate of step ``i`` (from 1) in cycles of ``cycle`` steps, each falling to ``low``.

    ``(1 - t) high + t low`` with ``t = (mod(i - 1, cycle) + 1) / cycle`` (Izmailov et al. 2018,
    "Averaging Weights Leads to Wider Optima and Better Generalization", section 3.2).
    """
    t = ((i - 1) % cycle + 1) / cycle
    return (1 - t) * high + t * low


class SWASchedule:
    """Drives the learning rates of ``optimizer`` from the first :meth:`step` on.

        >>> schedule = SWASchedule(optimizer, lr=0.05, anneal_steps=500)
        >>> for batch in batches:
        ...     schedule.step()  # before the optimizer's
        ...     train(batch)

    From what they are at the first step, the rates go within ``anneal_steps`` steps to ``lr``
    (:func:`annealed`; with 0 at once) and stay there. With ``lr_low`` they are :func:`cyclic`
    instead, between ``lr`` and ``lr_low`` with period ``cycle``. ``lr`` and ``lr_low`` are one
    number, or one for each parameter group.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr: float | Sequence[float],
        *,
        lr_low: float | Sequence[float] | None = None,
        cycle: int | None = None,
        anneal_steps: int = 0,
        anneal: Anneal = "cos",
    ) -> None:
        if (lr_low is None) != (cycle is None):
            raise RequestError("A cyclic schedule needs both lr_low and cycle.")
        if cycle is not None:
            check_count("cycle", cycle)
            if anneal_steps != 0:
                raise RequestError("A cyclic schedule has no anneal_steps.")
        check_count("anneal_steps", anneal_steps, 0)
        if anneal not in ("cos", "linear"):
            raise RequestError(f"anneal is {anneal!r}; it is 'cos' or 'linear'.")
        self.optimizer = optimizer
        self.steps = 0
        """How many steps were scheduled."""
        self._lr = self._each("lr", lr)
        self._low = None if lr_low is None else self._each("lr_low", lr_low)
        if self._low is not None and any(map(float.__gt__, self._low, self._lr)):
            raise RequestError("lr_low is above lr: a cycle falls from lr to lr_low.")
        self._cycle = cycle
        self._anneal_steps = anneal_steps
        self._anneal: Anneal = anneal
        self._first: list[float] = []

    def _each(self, what: str, value: Any) -> list[float]:
        count = len(self.optimizer.param_groups)
        given = value if isinstance(value, Sequence) else [value] * count
        if isinstance(value, str) or any(isinstance(each, str) for each in given):
            raise RequestError(f"{what} is {value!r}; it must be a number from 0.")
        try:
            found = [float(each) for each in given]
        except (TypeError, ValueError):
            raise RequestError(f"{what} is {value!r}; it must be a number from 0.") from None
        if len(found) != count:
            raise RequestError(f"{what} has {len(found)} rates for {count} parameter groups.")
        for rate in found:
            if not 0 <= rate < math.inf:
                raise RequestError(f"{what} is {rate}; it must be a number from 0.")
        return found

    def rates(self, i: int) -> list[float]:
        """The rate of each parameter group in step ``i``, from 1."""
        groups = self.optimizer.param_groups
        # A group that was added since has what the last one has, and starts where it is.
        first = self._first + [float(group["lr"]) for group in groups[len(self._first) :]]
        high = self._lr + self._lr[-1:] * (len(groups) - len(self._lr))
        if self._low is None or self._cycle is None:
            return [
                annealed(i, self._anneal_steps, before, rate, self._anneal)
                for before, rate in zip(first, high, strict=True)
            ]
        low = self._low + self._low[-1:] * (len(groups) - len(self._low))
        cycle = self._cycle
        return [cyclic(i, cycle, a, b) for a, b in zip(high, low, strict=True)]

    def step(self) -> None:
        """Set the rates of the next optimizer step."""
        groups = self.optimizer.param_groups
        self._first += [float(group["lr"]) for group in groups[len(self._first) :]]
        self.steps += 1
        for group, rate in zip(groups, self.rates(self.steps), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def get_last_lr(self) -> list[float]:
        """The rates as they are, by parameter group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def settings(self) -> dict[str, Any]:
        """What it was made with, as plain values; equal if the rates are, also where groups came
        one by one."""
        return {
            "lr": _shortest(self._lr),
            "lr_low": None if self._low is None else _shortest(self._low),
            "cycle": self._cycle,
            "anneal_steps": self._anneal_steps,
            "anneal": self._anneal,
        }

    def state_dict(self) -> dict[str, Any]:
        """Position and what the rates were at the start."""
        return {"steps": self.steps, "first": list(self._first)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`; the rates themselves are in the optimizer's."""
        self.steps = int(state["steps"])
        self._first = [float(rate) for rate in state["first"]]


def _shortest(rates: list[float]) -> list[float]:
    """Without the groups at the end that have what the one before has: added ones do anyway."""
    count = len(rates)
    while count > 1 and rates[count - 1] == rates[count - 2]:
        count -= 1
    return rates[:count]
