"""Weights that stand for a schedule of training, or that follow a metric."""

from __future__ import annotations

from dataclasses import replace

from swavg import weights
from swavg.errors import InputError, RequestError, did_you_mean
from swavg.methods.smooth import known, last_step
from swavg.planning.policy import Policy
from swavg.planning.row import Request, Row
from swavg.series import Series, with_metric
from swavg.storage.paths import read_file

_MOST = 1 << 20
"""Bytes of a file of factors, at most."""


def anneal(series: Series, how: str, *, policy: Policy) -> Request:
    """The end of a run whose learning rate would have decayed over the series
    (:mod:`swavg.weights.annealing`).

    ``how`` is a schedule of :data:`swavg.weights.ANNEALINGS`, or the path of a file with the
    factors of the updates after the first checkpoint, one a line. Raises RequestError, and
    InputError for a file that cannot be read.
    """
    n = len(series)
    factors = weights.annealing_factors(how, n) if how in weights.ANNEALINGS else _factors(how)
    if len(factors) != n - 1:
        raise RequestError(
            f"{how} has {len(factors)} factors, and {n} checkpoints have {n - 1} updates between"
            " them."
        )
    details = {"n": n, "anneal": how if how in weights.ANNEALINGS else "factors"}
    return _request(series, weights.anneal(factors), "anneal", details, policy)


def _factors(path: str) -> tuple[float, ...]:
    try:
        text = read_file(path, _MOST).decode(errors="replace")
    except InputError as error:
        near = did_you_mean(path, weights.ANNEALINGS)
        hint = near or f"Give {', '.join(weights.ANNEALINGS)}, or a file of factors, one a line."
        raise InputError(path, error.problem, hint=hint, absent=error.absent) from None
    try:
        return tuple(float(line) for line in text.split("\n") if line.strip())
    except ValueError as error:
        raise RequestError(
            f"{path} is no list of factors: {str(error)[:100]}.",
            hint=f"Write a number a line, or use one of {', '.join(weights.ANNEALINGS)}.",
        ) from None


def bema(series: Series, *, policy: Policy) -> Request:
    """The bias-corrected EMA of a series (:func:`swavg.weights.bema`); t counts training steps from
    the first checkpoint on. RequestError where a step is not known."""
    details = {"n": len(series), "schedule": "bema"}
    return _request(series, weights.bema(known(series.steps)), "bema", details, policy, name="ema")


def by_metric(
    series: Series,
    metric: str,
    *,
    policy: Policy,
    mode: str | None = None,
    temperature: float = 1.0,
) -> Request:
    """The checkpoints weighted by the softmax of a metric in its better direction
    (:func:`swavg.weights.by_metric`); those without it are left out. ``mode`` says whether ``min``
    or ``max`` is better; None: as the metric's name does. Raises RequestError."""
    series, best = with_metric(replace(series, notes=()), metric, mode)
    numbers = weights.by_metric(
        [snapshot.metrics[metric] for snapshot in series.snapshots],
        lower_is_better=best == "min",
        temperature=temperature,
    )
    details = {"metric": metric, "mode": best, "temperature": temperature}
    request = _request(series, numbers, "by metric", details, policy)
    return replace(request, notes=series.notes)


def _request(
    series: Series,
    numbers: tuple[float, ...],
    method: str,
    details: dict[str, object],
    policy: Policy,
    *,
    name: str = "averaged",
) -> Request:
    members = tuple(range(len(series)))
    row = Row(numbers, members, method, details | last_step(series.steps), name=name)
    return Request(series.paths, (row,), policy, shared=series.shared)
