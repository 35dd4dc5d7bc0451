"""The greedy soup by a held-out metric (Wortsman et al. 2022, arXiv 2203.05482, recipe 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from swavg.errors import RequestError

Mode = Literal["min", "max"]
"""Whether a smaller or a larger metric is better."""


class Trial(NamedTuple):
    """An ingredient that was tried."""

    ingredient: int
    metric: float
    """Of the mean of those kept before it, and it."""
    kept: bool


def trials(
    metric_of: Callable[[tuple[int, ...]], float],
    order: Sequence[int],
    mode: Mode,
    *,
    accept_equal: bool = True,
) -> Iterator[Trial]:
    """What a greedy soup tries, one after the other.

    ``order`` are the ingredients, best metric first. ``metric_of`` gets the indices of a candidate
    soup (those kept and one more, last) and returns the metric of their mean; it is called once for
    each index of ``order``. The first with a metric is kept; then a candidate is kept if its metric
    is no worse than that of the soup so far (the paper), or, without ``accept_equal``, if it is
    better (the paper's code). A metric that is NaN or infinite is never kept. The candidate's mean
    follows from the soup's by ``running(len(kept))``. Raises RequestError for an index given twice,
    and for a mode other than ``min`` and ``max``.
    """
    if mode not in get_args(Mode):
        raise RequestError(f"The mode {mode!r} is neither min nor max.")
    if len(set(order)) != len(order):
        raise RequestError("An ingredient of the soup is given twice.")
    kept: tuple[int, ...] = ()
    best = math.nan
    for index in order:
        metric = metric_of((*kept, index))
        better = metric < best if mode == "min" else metric > best
        good = not kept or better or (accept_equal and metric == best)
        if taken := good and math.isfinite(metric):
            kept, best = (*kept, index), metric
        yield Trial(index, metric, taken)
