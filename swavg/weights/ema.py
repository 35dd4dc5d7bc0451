"""Exponential moving averages (EMA) in closed form.

The running form adds one checkpoint after another with a decay each, ``m <- d m + (1 - d) x``.
All of it follows from ``ema_with_decays``:

- *started from the first* (torch's ``AveragedModel``, timm): ``m`` begins as the first checkpoint;
- *debiased from zero* (Adam; Kingma and Ba 2015, section 3; optax): ``m`` begins as zero, the first
  checkpoint is added like every other, and the end is divided by the sum of the weights.

An EMA goes on from an earlier one (``resume_with_decays``) as if all had been averaged at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from swavg.errors import RequestError
from swavg.weights.checks import check_count, check_decay, check_positive, check_steps


def ema(n: int, decay: float, *, debias: bool = False) -> tuple[float, ...]:
    """The EMA of ``n`` checkpoints, oldest first, with one decay (per checkpoint).

    Started from the first: ``w_1 = d^(n-1)``, ``w_i = (1-d) d^(n-i)``. Debiased:
    ``w_i = (1-d) d^(n-i) / (1-d^n)`` for every i. Raises RequestError for ``n`` < 1 and for a
    decay outside [0, 1).
    """
    check_count("The number of checkpoints", n)
    check_decay(decay)
    return ema_with_decays((decay,) * (n - 1), debias=debias)


def ema_by_step(steps: Sequence[float], decay: float, *, debias: bool = False) -> tuple[float, ...]:
    """The EMA of checkpoints at ``steps``, with a decay per step: ``d^gap`` over each gap.

    Each checkpoint stands for the steps since the one before: with ``d_i = d^(s_i - s_(i-1))``,
    ``w_i = (1-d_i) d^(s_n - s_i)``, and started from the first ``w_1 = d^(s_n - s_1)``. Debiased,
    the first stands for a gap as long as the second's (nothing before it is known), and the
    weights are divided by their sum; the running form is ``m <- d_i m + (1-d_i) x_i``,
    ``c <- d_i c + (1-d_i)`` from ``m = c = 0``, and ``m / c`` at the end. On steps that are one
    apart this is ``ema``. Raises RequestError for steps that do not increase and for a decay
    outside [0, 1).
    """
    return ema_with_decays(decays_by_step(steps, decay), debias=debias)


def ema_with_decays(
    decays: Sequence[float], *, debias: bool = False, first: float | None = None
) -> tuple[float, ...]:
    """The EMA of ``len(decays) + 1`` checkpoints, each added with a decay of its own.

    ``decays[i]`` is used when ``checkpoint[i + 1]`` is added (from 0). Each checkpoint has weight
    ``(1 - its decay) * product of the later decays``; started from the first, the first has the
    product of all. With ``debias`` the first is added to zero with the decay ``first`` (as large
    as ``decays[0]`` unless given) and the weights are divided by their sum, which is
    ``debias_mass``. Raises RequestError for a decay outside [0, 1).
    """
    for decay in decays:
        check_decay(decay)
    start = _first_decay(decays, first) if debias else 0.0
    weights = []
    later = 1.0
    for decay in reversed(decays):
        weights.append((1 - decay) * later)
        later *= decay
    weights.append((1 - start) * later)
    if start != 0:
        total = math.fsum(weights)
        weights = [weight / total for weight in weights]
    return tuple(reversed(weights))


def debias_mass(decays: Sequence[float], *, first: float | None = None) -> float:
    """What the weights of a debiased EMA sum to before they are divided by it.

    ``1 - first * product(decays)``; for one decay and n checkpoints ``1 - d^n`` (Adam's bias
    correction). It is all that must be known of a debiased EMA to go on with it
    (``resume_with_decays``). Arguments and errors as in ``ema_with_decays``.
    """
    for decay in decays:
        check_decay(decay)
    every = (_first_decay(decays, first), *decays)
    if 0 in every:
        return 1.0
    return -math.expm1(math.fsum(math.log(decay) for decay in every))


def resume_with_decays(decays: Sequence[float], *, mass: float = 1.0) -> tuple[float, ...]:
    """Weights for ``[EMA, new_1, ..., new_k]``: any EMA goes on, ``decays[i]`` for ``new[i]``.

    ``mass`` is the earlier EMA's ``debias_mass`` if it was debiased, and 1 if it was started from
    the first. Weights of the running form, the EMA's multiplied by ``mass`` (which undoes the
    division), all divided by their sum. Raises RequestError for nothing new, a decay outside
    [0, 1) and a mass outside (0, 1].
    """
    check_count("The number of new checkpoints", len(decays))
    if not 0 < mass <= 1:
        raise RequestError(f"The mass {mass} of the earlier EMA is not in (0, 1].")
    state, *added = ema_with_decays(decays)
    if mass == 1:
        return (state, *added)
    total = math.fsum((state * mass, *added))
    return (state * mass / total, *(weight / total for weight in added))


def decays_by_step(steps: Sequence[float], decay: float) -> tuple[float, ...]:
    """The decay over each gap between ``steps``: ``decay^(s_(i+1) - s_i)``; ``decay`` is per step.

    Raises RequestError for steps that do not increase and for a decay outside [0, 1).
    """
    check_steps(steps)
    check_decay(decay)
    decays = tuple(decay ** (later - earlier) for earlier, later in pairwise(steps))
    # Over a tiny gap a decay can round to 1.
    for gap_decay in decays:
        check_decay(gap_decay)
    return decays


def decay_from_half_life(half_life: float) -> float:
    """The decay at which a checkpoint's weight halves every ``half_life``: ``2^(-1/h)``.

    Per step where ``half_life`` is in steps (``ema_by_step``), per checkpoint where it is in
    checkpoints (``ema``). Raises RequestError unless 0 < half_life, and where it is so long that
    the decay would round to 1.
    """
    check_positive("The half-life", half_life)
    return _below_one(2.0 ** (-1 / half_life) if half_life > 1e-3 else 0.0, "half-life", half_life)


def half_life(decay: float) -> float:
    """The half-life of a decay, ``-1 / log2(d)``, in what the decay is per; 0 for decay 0."""
    check_decay(decay)
    return 0.0 if decay == 0 else -math.log(2) / math.log(decay)


def decay_from_span(span: float) -> float:
    """The decay of an EMA with the centre of mass of a mean of ``span``: ``1 - 2 / (span + 1)``.

    As in pandas' ``ewm(span=...)``. Per step or per checkpoint, as ``span`` is. Raises
    RequestError for a span below 1, and where it is so long that the decay would round to 1.
    """
    check_positive("The span", span)
    if span < 1:
        raise RequestError(f"The span is {span}; it must be at least 1.")
    return _below_one(1 - 2 / (span + 1), "span", span)


def _first_decay(decays: Sequence[float], first: float | None) -> float:
    if first is not None:
        check_decay(first)
        return first
    # One checkpoint alone has weight 1 whatever its decay.
    return decays[0] if decays else 0.0


def _below_one(decay: float, what: str, value: float) -> float:
    if decay >= 1:
        raise RequestError(f"The {what} {value:g} is too long: its decay rounds to 1.")
    return decay
