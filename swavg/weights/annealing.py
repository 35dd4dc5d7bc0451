"""Weights that stand for what training would have done: a learning rate that decays over the
averaged tail, and the bias of an EMA corrected.

*Annealing* (WSM, arXiv 2507.17634): the checkpoints of a run at a constant rate are its first
averaged one and the updates between them. With factors ``1 >= w_1 >= ... >= w_k >= 0`` on these,
as a decaying rate would have put them, the end is a weighted mean of the checkpoints:
``c_0 = 1 - w_1, c_j = w_j - w_(j+1), c_k = w_k``.

*BEMA* (arXiv 2508.00180): an EMA whose decay grows, and which is moved by part of the way from the
first checkpoint to the last, since it lags behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from swavg.errors import RequestError
from swavg.weights.checks import check_count, check_positive, check_steps
from swavg.weights.ema import ema_with_decays

ANNEALINGS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "1-sqrt": lambda x: 1 - math.sqrt(x),
}
"""The factor of an update at the fraction ``x`` of the decay, by name; linear is the mean."""


def annealing_factors(name: str, n: int) -> tuple[float, ...]:
    """The factors of the ``n - 1`` updates after the first of ``n`` checkpoints, by a schedule of
    ANNEALINGS at ``x_i = i / n``. Raises RequestError for another name, and ``n`` < 1."""
    if name not in ANNEALINGS:
        raise RequestError(
            f"There is no annealing called {name!r}.", hint=f"There are: {', '.join(ANNEALINGS)}."
        )
    check_count("The number of checkpoints", n)
    return tuple(ANNEALINGS[name](i / n) for i in range(1, n))


def anneal(factors: Sequence[float]) -> tuple[float, ...]:
    """The weights of ``len(factors) + 1`` checkpoints, oldest first, whose later updates count by
    these factors. Raises RequestError unless they fall from at most 1 to at least 0."""
    bounds = (1.0, *factors, 0.0)
    for before, after in pairwise(bounds):
        if not after <= before:
            raise RequestError(
                f"The factors of an annealing fall from 1 to 0, and {after:g} follows {before:g}."
            )
    return tuple(before - after for before, after in pairwise(bounds))


def bema(
    steps: Sequence[float],
    *,
    kappa: float = 0.5,
    eta: float = 0.2,
    rho: float = 10.0,
    gamma: float = 1.0,
) -> tuple[float, ...]:
    """The bias-corrected EMA of checkpoints at training ``steps``, oldest first.

    With ``t`` the steps since the first, ``beta_t = (rho + gamma t)^-kappa`` and ``alpha_t = (rho +
    gamma t)^-eta``: ``E <- (1 - beta_t) E + beta_t x_t`` from ``E = x_0``, and at the end ``E +
    alpha_T (x_T - x_0)``. The defaults are those of the authors' callback for trainers. Raises
    RequestError for steps that do not increase, and for values out of range.
    """
    check_steps(steps)
    check_positive("rho", rho)
    for name, value in (("kappa", kappa), ("eta", eta), ("gamma", gamma)):
        if not (value >= 0 and math.isfinite(value)):
            raise RequestError(f"{name} is {value}; it must be a number of at least 0.")
    ages = [rho + gamma * (step - steps[0]) for step in steps[1:]]
    decays = [1 - age**-kappa for age in ages]
    if any(decay < 0 for decay in decays):
        raise RequestError(f"rho is {rho:g}; it must be at least 1 for a decay of at least 0.")
    first, *others = ema_with_decays(decays)
    if not others:
        return (first,)
    moved = ages[-1] ** -eta
    return (first - moved, *others[:-1], others[-1] + moved)


def by_metric(
    metrics: Sequence[float], *, lower_is_better: bool, temperature: float = 1.0
) -> tuple[float, ...]:
    """The softmax of metrics over ``temperature``, in their better direction: ``e^(m_i / T)``, or
    ``e^(-m_i / T)`` where lower is better, divided by their sum. Raises RequestError for no
    metrics, one that is not finite, and a temperature that is not positive."""
    check_count("The number of checkpoints", len(metrics))
    check_positive("The temperature", temperature)
    if not all(map(math.isfinite, metrics)):
        raise RequestError("A metric is not finite.")
    signed = [-metric if lower_is_better else metric for metric in metrics]
    # The best has exponent 0, so that nothing overflows.
    found = [math.exp((value - max(signed)) / temperature) for value in signed]
    total = math.fsum(found)
    return tuple(value / total for value in found)
