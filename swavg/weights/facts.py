"""What a vector of weights amounts to, in two numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from swavg.errors import RequestError


def effective_number(weights: Sequence[float]) -> float:
    """How many equally weighted checkpoints average out as much noise: ``1 / sum w^2``.

    The weights are divided by their sum first (Kish's effective sample size). n for the mean of
    n; ``(1+d)/(1-d)`` for a long EMA; below 1 where negative weights amplify noise. Raises
    RequestError for weights that sum to 0.
    """
    return 1 / math.fsum(weight * weight for weight in _shares(weights))


def half_life_of(weights: Sequence[float]) -> float:
    """How many of the newest checkpoints (the last) hold half of the weight.

    The smallest x at which the shares of the newest x, added up, reach 1/2; a checkpoint's share
    counts as spread evenly over its place, so that x need not be whole. n/2 for the mean of n, and
    close to ``half_life(decay)`` for a long EMA. With negative weights it is the first time that
    the sum gets there. Raises RequestError for weights that sum to 0.
    """
    reached = 0.0
    shares = _shares(weights)
    for newer, share in enumerate(reversed(shares)):
        if reached + share >= 0.5:
            return newer + (0.5 - reached) / share
        reached += share
    return float(len(shares))  # Only rounding leads here: the shares sum to 1.


def _shares(weights: Sequence[float]) -> list[float]:
    total = math.fsum(weights)
    if total == 0:
        raise RequestError("The weights sum to 0: no checkpoint has a share of them.")
    return [weight / total for weight in weights]
