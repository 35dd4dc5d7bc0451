"""Learning rates for stochastic weight averaging, computed by torch's schedulers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler
from torch.optim.swa_utils import SWALR

from swavg.errors import RequestError
from swavg.weights.checks import check_count

Anneal = Literal["cos", "linear"]


class SWASchedule:
    """Drives the learning rates of ``optimizer`` from the first :meth:`step` on.

        >>> schedule = SWASchedule(optimizer, lr=0.05, anneal_steps=500)
        >>> for batch in batches:
        ...     schedule.step()  # before the optimizer's
        ...     train(batch)

    From what they are at the first step, torch's ``SWALR`` takes the rates within ``anneal_steps``
    steps to ``lr`` (with 0 at once), where they stay. With ``lr_low`` torch's ``CyclicLR`` has them
    fall from ``lr`` to ``lr_low`` with period ``cycle``: in step i (from 1) the rate is
    ``(1 - t) lr + t lr_low`` with ``t = (mod(i - 1, cycle) + 1) / cycle`` (Izmailov et al. 2018,
    "Averaging Weights Leads to Wider Optima and Better Generalization", section 3.2). ``lr`` and
    ``lr_low`` are one number, or one for each parameter group; a group that is added has the
    last one's.

    torch's scheduler runs on rates of its own, which are then the optimizer's: what else sets
    these is overruled, and changes nothing of those that follow.
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
        self._lr = self._checked("lr", lr)
        self._low = None if lr_low is None else self._checked("lr_low", lr_low)
        if self._low is not None and any(map(float.__gt__, self._low, self._lr)):
            raise RequestError("lr_low is above lr: a cycle falls from lr to lr_low.")
        # Whole numbers of any type will do; torch takes an int.
        self._cycle = None if cycle is None else int(cycle)
        self._anneal_steps = int(anneal_steps)
        self._anneal: Anneal = anneal
        self._first: list[float] = []
        self._scheduler: LRScheduler | None = None

    def _checked(self, what: str, value: Any) -> list[float]:
        count = len(self.optimizer.param_groups)
        many = isinstance(value, Sequence) and not isinstance(value, str)
        rates = list(value) if many else [value] * count
        if len(rates) != count:
            raise RequestError(f"{what} has {len(rates)} rates for {count} parameter groups.")
        for rate in rates:
            try:
                valid = not isinstance(rate, str) and 0 <= float(rate) < math.inf
            except (TypeError, ValueError):
                valid = False
            if not valid:
                raise RequestError(f"{what} is {rate!r}; it must be a number from 0.")
        return [float(rate) for rate in rates]

    def step(self) -> None:
        """Set the rates of the next optimizer step."""
        groups = self.optimizer.param_groups
        if self._scheduler is None or len(groups) > len(self._first):
            self._first += [float(group["lr"]) for group in groups[len(self._first) :]]
            self._scheduler = self._torchs()
        self._scheduler.step()
        self.steps += 1
        for group, rate in zip(groups, self._scheduler.get_last_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = float(rate)

    def _torchs(self) -> LRScheduler:
        """torch's scheduler after :attr:`steps` steps, on an optimizer without parameters."""
        count = len(self._first)
        rates = SGD([{"params": [], "lr": rate} for rate in self._first], lr=0.0)
        lr = self._lr + self._lr[-1:] * (count - len(self._lr))
        scheduler: LRScheduler
        if self._low is None or self._cycle is None:
            scheduler = SWALR(rates, lr, self._anneal_steps, self._anneal)  # type: ignore[arg-type]
        else:
            low = self._low + self._low[-1:] * (count - len(self._low))
            # Rises in one step, to where the paper's cycle begins.
            top = [a - (a - b) / self._cycle for a, b in zip(lr, low, strict=True)]
            scheduler = CyclicLR(rates, low, top, 1, self._cycle - 1, cycle_momentum=False)
        # Schedulers warn unless the optimizer's step comes first.
        rates.step()
        # SWALR goes from rate to rate until it has arrived, CyclicLR knows the step's.
        for _ in range(min(self.steps, self._anneal_steps)):
            scheduler.step()
        scheduler.last_epoch = self.steps
        return scheduler

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
        self._scheduler = None


def _shortest(rates: list[float]) -> list[float]:
    """Without the groups at the end that have what the one before has: added ones do anyway."""
    count = len(rates)
    while count > 1 and rates[count - 1] == rates[count - 2]:
        count -= 1
    return rates[:count]
