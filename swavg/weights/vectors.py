"""The mean, the user's own weights, and what any vector of weights amounts to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from swavg.errors import RequestError

Sum = Literal["one", "normalize", "raw"]

TOLERANCE = 1e-6
"""How far a sum of weights may be from 1 and still count as 1."""


def mean(n: int) -> tuple[float, ...]:
    """The mean of ``n`` checkpoints (SWA; Izmailov et al. 2018, algorithm 1): 1/n each.

    Raises RequestError for ``n`` < 1.
    """
    if n < 1:
        raise RequestError("There is nothing to average.")
    return (1.0 / n,) * n


def checked(values: Sequence[float], n: int, sum_to: Sum = "one") -> tuple[float, ...]:
    """The user's own weights for ``n`` checkpoints.

    ``sum_to`` is ``one`` (they must sum to 1, within 1e-6), ``normalize`` (divided by their sum)
    or ``raw`` (as they are). Raises RequestError for another count than ``n``, for a value that is
    not finite, for a sum other than 1, and for a sum of 0 that cannot be normalized.
    """
    if sum_to not in get_args(Sum):
        raise RequestError(f"sum_to is {sum_to!r}; it can be {', '.join(get_args(Sum))}.")
    try:
        weights = tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise RequestError(f"The weights are no numbers: {error}.") from None
    if len(weights) != n:
        raise RequestError(
            f"{_count(len(weights), 'weight')} for {_count(n, 'checkpoint')}.",
            hint="Give one weight per checkpoint, in the same order. On the command line, a path"
            " that is a number is written ./10.",
        )
    for weight in weights:
        if not math.isfinite(weight):
            raise RequestError(f"The weight {weight} is not a finite number.")
    total = math.fsum(weights)
    if sum_to == "raw":
        return weights
    if sum_to == "normalize":
        if total == 0:
            raise RequestError("The weights sum to 0 and cannot be normalized.")
        return tuple(weight / total for weight in weights)
    if abs(total - 1) > TOLERANCE:
        divided = "sum_to='normalize' to divide by the sum, or " if total else ""
        raise RequestError(
            f"The weights sum to {total:.7g}, not 1.",
            hint=f"Use {divided}sum_to='raw' to use them as they are.",
        )
    # As good as equal weights can be written: it is the mean.
    return mean(n) if len(set(weights)) == 1 else weights


def is_uniform(weights: Sequence[float]) -> bool:
    """True if the weighted sum is the mean: all weights are equal, and 1/n to the last bits."""
    same = all(weight == weights[0] for weight in weights)
    return same and math.isclose(weights[0] * len(weights), 1, rel_tol=1e-15)


def sums_to_one(weights: Sequence[float]) -> bool:
    """True if the sum is within 1e-6 of 1."""
    return abs(math.fsum(weights) - 1) <= TOLERANCE


def renormalized(weights: Sequence[float], present: Sequence[int]) -> tuple[float, ...]:
    """The weights of the checkpoints ``present``, scaled to the sum of all weights.

    Raises RequestError if those present have weights that sum to 0.
    """
    chosen = [weights[index] for index in present]
    part, total = math.fsum(chosen), math.fsum(weights)
    if part == 0:
        raise RequestError(
            "The weights of the checkpoints that have a tensor sum to 0: cannot renormalize.",
            hint="Use missing='keep' or missing='drop'.",
        )
    return tuple(weight * (total / part) for weight in chosen)


def effective_number(weights: Sequence[float]) -> float:
    """How many equally weighted checkpoints average out as much noise: ``1 / sum w^2``.

    The weights are divided by their sum first (Kish's effective sample size). n for the mean of
    n; ``(1+d)/(1-d)`` for a long EMA; below 1 where negative weights amplify noise. Raises
    RequestError for weights that sum to 0.
    """
    return 1 / math.fsum(share * share for share in _shares(weights))


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


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
