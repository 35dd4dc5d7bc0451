"""Averaging methods as vectors of weights over an ordered list of checkpoints.

Pure functions to tuples of floats; no tensor is touched here. Checkpoints come oldest first. One
file per family: ``given`` (mean and the user's own), ``ema``, ``warmup`` and ``resume``,
``running``, ``power``, ``soup``; ``facts`` says what a vector of weights amounts to.
"""

from swavg.weights.ema import (
    debias_mass,
    decay_from_half_life,
    decay_from_span,
    decays_by_step,
    ema,
    ema_by_step,
    ema_with_decays,
    half_life,
)
from swavg.weights.facts import effective_number, half_life_of
from swavg.weights.given import (
    TOLERANCE,
    Sum,
    given,
    is_uniform,
    mean,
    renormalized,
    sums_to_one,
)
from swavg.weights.power import (
    beta,
    gamma_from_sigma_rel,
    inner_product,
    posthoc,
    power_profile,
    sigma_rel_from_gamma,
)
from swavg.weights.resume import resume, resume_by_step, resume_with_decays
from swavg.weights.running import running, slide, window
from swavg.weights.soup import Mode, greedy, greedy_order, uniform
from swavg.weights.warmup import WARMUPS, ema_warmup, warmup_decay, warmup_decays

__all__ = [
    "TOLERANCE",
    "WARMUPS",
    "Mode",
    "Sum",
    "beta",
    "debias_mass",
    "decay_from_half_life",
    "decay_from_span",
    "decays_by_step",
    "effective_number",
    "ema",
    "ema_by_step",
    "ema_warmup",
    "ema_with_decays",
    "gamma_from_sigma_rel",
    "given",
    "greedy",
    "greedy_order",
    "half_life",
    "half_life_of",
    "inner_product",
    "is_uniform",
    "mean",
    "posthoc",
    "power_profile",
    "renormalized",
    "resume",
    "resume_by_step",
    "resume_with_decays",
    "running",
    "sigma_rel_from_gamma",
    "slide",
    "sums_to_one",
    "uniform",
    "warmup_decay",
    "warmup_decays",
    "window",
]
