"""EMA decays that grow from small to ``decay``, as known projects define them.

``t`` counts updates. In every one of them the state before update 1 is the first checkpoint, so
that update t adds checkpoint t + 1 (counted from 1): TensorFlow, torch_ema and YOLO start from a
copy of the model and their first update has t = 1; diffusers, timm and ema-pytorch have t = 0 in
their first update, where the decay is 0, which is a copy of the checkpoint at hand.
"""

from __future__ import annotations

import math

from swavg.errors import RequestError
from swavg.weights.checks import check_count, check_decay, check_positive
from swavg.weights.ema import ema_with_decays

WARMUPS = ("tensorflow", "inverse-gamma", "yolo")
"""The names that ``warmup_decay`` knows."""


def warmup_decay(
    name: str,
    t: int,
    decay: float,
    *,
    gamma: float = 1.0,
    power: float = 2 / 3,
    minimum: float = 0.0,
    tau: float = 2000.0,
) -> float:
    """The decay of update ``t`` on the way up to ``decay``.

    - ``tensorflow``: ``min(decay, (1+t) / (10+t))`` (``tf.train.ExponentialMovingAverage`` with
      ``num_updates``; torch_ema). First update: t = 1 in torch_ema, the caller's in TensorFlow.
    - ``inverse-gamma``: ``1 - (1 + t/gamma)^-power``, at most ``decay`` and at least ``minimum``
      (diffusers' ``EMAModel``, timm's ``ModelEmaV3``, ema-pytorch). Their first update has t = 0
      and is a copy, whatever the minimum.
    - ``yolo``: ``decay * (1 - e^(-t/tau))`` (YOLOv5's and ultralytics' ``ModelEMA``). First
      update: t = 1.

    ``gamma``, ``power`` and ``minimum`` belong to inverse-gamma, ``tau`` (in updates) to yolo.
    Raises RequestError for another name, t < 0, and values out of range.
    """
    check_count("The number of the update", t, 0)
    check_decay(decay)
    if name == "tensorflow":
        return min(decay, (1 + t) / (10 + t))
    if name == "inverse-gamma":
        check_positive("gamma", gamma)
        check_positive("The power", power)
        if not 0 <= minimum <= decay:
            raise RequestError(f"The smallest decay {minimum} is not in [0, {decay}].")
        if t == 0:
            return 0.0
        remembered: float = 1 - (1 + t / gamma) ** -power
        return max(minimum, min(decay, remembered))
    if name == "yolo":
        check_positive("tau", tau)
        return decay * -math.expm1(-t / tau)
    raise RequestError(
        f"There is no warm-up called {name!r}.", hint=f"There are: {', '.join(WARMUPS)}."
    )


def warmup_decays(
    name: str,
    updates: int,
    decay: float,
    *,
    start: int = 1,
    gamma: float = 1.0,
    power: float = 2 / 3,
    minimum: float = 0.0,
    tau: float = 2000.0,
) -> tuple[float, ...]:
    """The decays of ``updates`` updates in a row, the first of them with t = ``start``.

    To go on with an EMA of k checkpoints, give ``start=k`` and use ``resume_with_decays``.
    Otherwise as ``warmup_decay``.
    """
    check_count("The number of updates", updates, 0)
    return tuple(
        warmup_decay(name, t, decay, gamma=gamma, power=power, minimum=minimum, tau=tau)
        for t in range(start, start + updates)
    )


def ema_warmup(
    n: int,
    decay: float,
    name: str,
    *,
    start: int = 1,
    gamma: float = 1.0,
    power: float = 2 / 3,
    minimum: float = 0.0,
    tau: float = 2000.0,
) -> tuple[float, ...]:
    """The EMA of ``n`` checkpoints, started from the first, with decays warmed up by ``name``.

    The second checkpoint is added by the update with t = ``start``. 1 is every project's count
    (see above). 0 is for inverse-gamma over a list that begins with the model before training:
    update 0 replaces it by the second. t counts checkpoints, not steps. Otherwise as
    ``warmup_decay``.
    """
    check_count("The number of checkpoints", n)
    return ema_with_decays(
        warmup_decays(
            name, n - 1, decay, start=start, gamma=gamma, power=power, minimum=minimum, tau=tau
        )
    )
