"""An earlier EMA continued with later checkpoints: the weights for ``[EMA, new_1, ..., new_k]``.

The result equals the EMA of all checkpoints done at once. Started from the first, the earlier EMA
is the state itself. Debiased, it was divided by the sum of its weights (``debias_mass``), and that
division is undone first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from swavg.errors import RequestError
from swavg.weights.checks import check_count
from swavg.weights.ema import debias_mass, decays_by_step, ema_with_decays


def resume(held: int, new: int, decay: float, *, debias: bool = False) -> tuple[float, ...]:
    """Go on with ``ema`` of ``held`` checkpoints by ``new`` more.

    ``w_ema = d^new``, ``w_i = (1-d) d^(new-i)``; if the earlier one was debiased:
    ``w_ema = d^new (1-d^held) / (1-d^(held+new))``, ``w_i = (1-d) d^(new-i) / (1-d^(held+new))``.
    ``held`` matters for that only. Raises RequestError for counts below 1 and a decay outside
    [0, 1).
    """
    check_count("The number of checkpoints in the EMA", held)
    check_count("The number of new checkpoints", new)
    mass = debias_mass((decay,) * (held - 1), first=decay) if debias else 1.0
    return resume_with_decays((decay,) * new, mass=mass)


def resume_by_step(
    held: Sequence[float], new: Sequence[float], decay: float, *, debias: bool = False
) -> tuple[float, ...]:
    """Go on with ``ema_by_step`` of checkpoints at the steps ``held`` by those at ``new``.

    Of ``held`` only the last counts, and where the EMA is debiased the first two. Raises
    RequestError for steps that do not increase over both lists and a decay outside [0, 1).
    """
    if not held:
        raise RequestError("The EMA to go on with holds no checkpoint.")
    check_count("The number of new checkpoints", len(new))
    decays = decays_by_step((*held, *new), decay)
    earlier, added = decays[: len(held) - 1], decays[len(held) - 1 :]
    mass = debias_mass(earlier, first=decays[0]) if debias else 1.0
    return resume_with_decays(added, mass=mass)


def resume_with_decays(decays: Sequence[float], *, mass: float = 1.0) -> tuple[float, ...]:
    """Go on with any EMA: ``decays[i]`` is used when ``new[i]`` (from 0) is added.

    ``mass`` is the earlier EMA's ``debias_mass`` if it was debiased, and 1 if it was started from
    the first. Weights of the running form, the EMA's multiplied by ``mass``, all divided by their
    sum. Raises RequestError for a decay outside [0, 1) and a mass outside (0, 1].
    """
    check_count("The number of new checkpoints", len(decays))
    if not 0 < mass <= 1:
        raise RequestError(f"The mass {mass} of the earlier EMA is not in (0, 1].")
    state, *added = ema_with_decays(decays)
    if mass == 1:
        return (state, *added)
    total = math.fsum((state * mass, *added))
    return (state * mass / total, *(weight / total for weight in added))
