"""Power-function EMA and its post-hoc synthesis.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models" (arXiv
2312.02696), section 3 and appendix C. The profile of exponent gamma at step t weighs step tau by
``f(tau) = (gamma+1) tau^gamma / t^(gamma+1)`` on [0, t]. Its relative width sigma_rel is the
profile's standard deviation divided by t. Steps count from the start of training, in any unit
(updates, samples), the same one throughout.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from swavg.errors import RequestError
from swavg.weights.checks import check_count, check_positive

WIDEST = 12**-0.5
"""The relative width of gamma 0, the uniform profile: every other is narrower."""


def sigma_rel_from_gamma(gamma: float) -> float:
    """The relative width ``sqrt((g+1) / ((g+2)^2 (g+3)))`` (section 3).

    Raises RequestError for ``gamma`` < 0.
    """
    _check_gamma(gamma)
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_from_sigma_rel(sigma_rel: float) -> float:
    """The exponent for a relative width, the inverse of ``sigma_rel_from_gamma``.

    The largest real root of ``g^3 + 7 g^2 + (16 - s^-2) g + (12 - s^-2) = 0`` (appendix C). Raises
    RequestError unless 0 < s < 12^-0.5 = 0.2887.
    """
    if not 0 < sigma_rel < WIDEST:
        raise RequestError(
            f"The relative width {sigma_rel} is not in (0, {WIDEST:.4f}).",
            hint="0.05 to 0.15 are usual.",
        )
    # The width falls as gamma grows, and gamma < 1/s: halve the interval until it is one number.
    low, high = 0.0, min(1 / sigma_rel, sys.float_info.max)
    while low < (middle := low + (high - low) / 2) < high:
        if sigma_rel_from_gamma(middle) > sigma_rel:
            low = middle
        else:
            high = middle
    return high


def beta(t: float, gamma: float) -> float:
    """The decay of update ``t`` (from 1): ``(1 - 1/t)^(gamma+1)`` (section 3).

    The running form is ``m <- beta m + (1 - beta) x``; at t = 1 it is 0, a copy. Raises
    RequestError for t < 1 and ``gamma`` < 0.
    """
    _check_gamma(gamma)
    if not 1 <= t < math.inf:
        raise RequestError(f"The update {t} is not a number from 1.")
    return 0.0 if t == 1 else math.exp((gamma + 1) * math.log1p(-1 / t))


def inner_product(ta: float, ga: float, tb: float, gb: float) -> float:
    """The integral of the product of two profiles, ``ga`` at step ``ta`` and ``gb`` at ``tb``.

    ``(ga+1)(gb+1) (ta/tb)^e / ((ga+gb+1) max(ta,tb))`` with ``e = gb`` if ta < tb, else ``-ga``
    (appendix C). Raises RequestError for steps that are not positive and exponents below 0.
    """
    for step in (ta, tb):
        check_positive("The step", step)
    for gamma in (ga, gb):
        _check_gamma(gamma)
    # The smaller step over the larger, to a power >= 0: between 0 and 1, never an overflow.
    shared: float = (min(ta, tb) / max(ta, tb)) ** (gb if ta < tb else ga)
    return (ga + 1) / (ga + gb + 1) * (gb + 1) * shared / max(ta, tb)


def posthoc(
    steps: Sequence[float], gammas: Sequence[float], target_step: float, target_gamma: float
) -> tuple[float, ...]:
    """Weights for snapshots of power-function EMAs that come closest to another profile.

    Snapshot i is the EMA with exponent ``gammas[i]`` at ``steps[i]``, in any order. Solves
    ``A X = B``, with the inner products of the snapshots' profiles among themselves and with the
    target's (the least-squares fit; appendix C), and divides X by its sum. Snapshots
    after ``target_step`` get weight 0; negative weights are normal. A target that is one of the
    snapshots gets that one, exactly. Raises RequestError for no snapshot up to the target, for
    two snapshots of the same profile, and for profiles too alike to be told apart in float64.
    """
    if len(steps) != len(gammas):
        raise RequestError(f"{len(steps)} steps for {len(gammas)} exponents of snapshots.")
    check_count("The number of snapshots", len(steps))
    profiles = list(zip(steps, gammas, strict=True))
    target = (target_step, target_gamma)
    norms = {each: math.sqrt(inner_product(*each, *each)) for each in (*profiles, target)}
    used = [index for index, step in enumerate(steps) if step <= target_step]
    if not used:
        raise RequestError(
            f"The first snapshot is at step {min(steps)}, after the target step {target_step}.",
            hint="Only snapshots up to the target step can be used.",
        )
    chosen = [profiles[index] for index in used]
    for place, (step, gamma) in enumerate(chosen):
        if (step, gamma) in chosen[:place]:
            raise RequestError(
                f"Two snapshots have the same profile: step {step}, gamma {gamma:g}.",
                hint="Give each snapshot once.",
            )
    if target in chosen:
        return tuple(float(profile == target) for profile in profiles)
    # Cosines instead of inner products: the same solution, without the scale of the steps.
    matrix = [[inner_product(*a, *b) / (norms[a] * norms[b]) for b in chosen] for a in chosen]
    right = [inner_product(*a, *target) / (norms[a] * norms[target]) for a in chosen]
    solved = _solve(matrix, right)
    # What is still missing is a factor common to all, which the sum takes out again.
    scaled = [x / norms[profile] for x, profile in zip(solved, chosen, strict=True)]
    total = math.fsum(scaled)
    if total == 0:
        raise RequestError(
            f"No snapshot holds anything that an EMA at step {target_step} remembers.",
            hint="Use later snapshots, or a wider target.",
        )
    weights = [0.0] * len(steps)
    for index, value in zip(used, scaled, strict=True):
        weights[index] = value / total
    return tuple(weights)


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    import numpy as np

    a = np.array(matrix)
    spectrum = np.linalg.eigvalsh(a)
    if spectrum[0] <= len(a) * np.finfo(np.float64).eps * spectrum[-1]:
        raise RequestError(
            "The profiles of the snapshots are too alike to be told apart in float64.",
            hint="Use fewer snapshots, further apart in step or in width.",
        )
    solved: list[float] = np.linalg.solve(a, np.array(right)).tolist()
    return solved


def _check_gamma(gamma: float) -> None:
    if not 0 <= gamma < math.inf:
        raise RequestError(f"The exponent gamma is {gamma}; it must be a number from 0.")
