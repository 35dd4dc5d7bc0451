"""Averaging methods as vectors of weights over an ordered list of checkpoints.

Pure functions to tuples of floats; no tensor is touched here. Checkpoints come oldest first. One
file per family: ``vectors`` (the mean, the user's own, and what any vector amounts to), ``ema`` and
``warmup``, ``annealing``, ``running``, ``power``, ``soup``.
"""

from swavg.weights.annealing import ANNEALINGS, anneal, annealing_factors, bema, by_metric
from swavg.weights.ema import (
    debias_mass,
    decay_from_half_life,
    decay_from_span,
    decays_by_step,
    ema,
    ema_by_step,
    ema_with_decays,
    half_life,
    resume_with_decays,
)
from swavg.weights.power import (
    beta,
    gamma_from_sigma_rel,
    inner_product,
    posthoc,
    sigma_rel_from_gamma,
)
from swavg.weights.running import running, slide, window
from swavg.weights.soup import Mode, Trial, trials
from swavg.weights.vectors import (
    TOLERANCE,
    Sum,
    checked,
    effective_number,
    half_life_of,
    is_uniform,
    mean,
    renormalized,
    sums_to_one,
)
from swavg.weights.warmup import WARMUPS, warmup_decay

__all__ = [
    "ANNEALINGS",
    "TOLERANCE",
    "WARMUPS",
    "Mode",
    "Sum",
    "Trial",
    "anneal",
    "annealing_factors",
    "bema",
    "beta",
    "by_metric",
    "checked",
    "debias_mass",
    "decay_from_half_life",
    "decay_from_span",
    "decays_by_step",
    "effective_number",
    "ema",
    "ema_by_step",
    "ema_with_decays",
    "gamma_from_sigma_rel",
    "half_life",
    "half_life_of",
    "inner_product",
    "is_uniform",
    "mean",
    "posthoc",
    "renormalized",
    "resume_with_decays",
    "running",
    "sigma_rel_from_gamma",
    "slide",
    "sums_to_one",
    "trials",
    "warmup_decay",
    "window",
]
