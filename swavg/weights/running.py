"""Means that go on from means: each needs only the average and how many checkpoints it holds."""

from __future__ import annotations

import math

from swavg.errors import RequestError
from swavg.weights.checks import check_count


def running(n: int, new: int = 1) -> tuple[float, ...]:
    """Weights for ``[average of n, new_1, ..., new_k]``: the mean of all ``n + k``.

    ``n/(n+k)`` for the average, ``1/(n+k)`` for each of the ``new`` checkpoints. For k = 1 this is
    the running SWA update ``(w_swa n + w) / (n+1)`` (Izmailov et al. 2018, algorithm 1; torch's
    ``get_swa_multi_avg_fn``). The result is an average of ``n + k``. Raises RequestError for
    ``n`` < 1 and for nothing new.
    """
    check_count("The number of checkpoints in the average", n)
    check_count("The number of new checkpoints", new)
    return slide(n, new, 0)


def slide(n: int, added: int, dropped: int) -> tuple[float, ...]:
    """Weights for ``[average of n, added..., dropped...]``: the window moved along.

    ``(n avg + sum(added) - sum(dropped)) / (n + a - d)``; what is dropped must be in the average,
    once each. The result is an average of ``n + a - d``. Raises RequestError for ``n`` < 1, for
    nothing to add or drop, for more dropped than held, and where nothing would be left.
    """
    check_count("The number of checkpoints in the average", n)
    check_count("The number of checkpoints to add", added, 0)
    check_count("The number of checkpoints to drop", dropped, 0)
    if added == dropped == 0:
        raise RequestError("There is nothing to add to the average and nothing to drop from it.")
    if dropped > n:
        raise RequestError(f"{dropped} checkpoints to drop, but the average holds only {n}.")
    left = n + added - dropped
    if left == 0:
        raise RequestError("Dropping every checkpoint of the average leaves nothing.")
    return (n / left, *(1 / left,) * added, *(-1 / left,) * dropped)


def window(n_start: float, n_end: float) -> tuple[float, float]:
    """Weights for ``[start, end]``, two running means: the mean of what came between them.

    With a mean ``a_s`` over the first ``n_start`` steps (or checkpoints) and ``a_e`` over the first
    ``n_end``, the mean over (n_start, n_end] is ``(a_e n_end - a_s n_start) / (n_end - n_start)``
    (icefall, ``average_checkpoints_with_averaged_model``). The result is an average of
    ``n_end - n_start``. Raises RequestError unless 0 < n_start < n_end.
    """
    if not n_start > 0:
        raise RequestError(f"The first average covers {n_start} steps; it must cover some.")
    if not n_start < n_end < math.inf:
        raise RequestError(
            f"The later average covers {n_end} steps, the earlier {n_start}: nothing lies between.",
            hint="Give the average with fewer steps first.",
        )
    between = n_end - n_start
    return (-n_start / between, n_end / between)
