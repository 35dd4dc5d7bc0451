"""EMA decays that grow from small to ``decay``, as known projects define them.

``t`` counts updates. In every project the state before update 1 is the first checkpoint, so that
update t adds checkpoint t + 1 (counted from 1): TensorFlow, torch_ema and YOLO start from a copy of
the model and their first update has t = 1; diffusers, timm and ema-pytorch have t = 0 in their
first update, where the decay is 0, which is a copy of the checkpoint at hand. Over a list of
checkpoints the decays are those of t = 1, 2, ... (``ema_with_decays``).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import cache

from swavg.errors import RequestError
from swavg.weights.checks import check_count, check_decay, check_positive


def _tensorflow(t: int, decay: float) -> float:
    """``min(decay, (1+t) / (10+t))``.

    ``tf.train.ExponentialMovingAverage`` with ``num_updates``; torch_ema.
    """
    return min(decay, (1 + t) / (10 + t))


def _inverse_gamma(
    t: int, decay: float, gamma: float = 1.0, power: float = 2 / 3, minimum: float = 0.0
) -> float:
    """``1 - (1 + t/gamma)^-power``, at most ``decay`` and at least ``minimum``; 0 at t = 0.

    diffusers' ``EMAModel``, timm's ``ModelEmaV3``, ema-pytorch.
    """
    check_positive("gamma", gamma)
    check_positive("The power", power)
    if not 0 <= minimum <= decay:
        raise RequestError(f"The smallest decay {minimum} is not in [0, {decay}].")
    if t == 0:
        return 0.0
    remembered: float = 1 - (1 + t / gamma) ** -power
    return max(minimum, min(decay, remembered))


def _yolo(t: int, decay: float, tau: float = 2000.0) -> float:
    """``decay * (1 - e^(-t/tau))``; ``tau`` in updates. ``ModelEMA`` of YOLOv5 and ultralytics."""
    check_positive("tau", tau)
    return decay * -math.expm1(-t / tau)


WARMUPS: Mapping[str, Callable[..., float]] = {
    "tensorflow": _tensorflow,
    "inverse-gamma": _inverse_gamma,
    "yolo": _yolo,
}
"""The decay of update t on the way up to ``decay``, by name: functions of t, decay and options."""


def warmup_decay(name: str, t: int, decay: float, **options: float) -> float:
    """The decay of update ``t`` on the way up to ``decay``, by the schedule ``name`` of WARMUPS.

    ``decay`` may be 1, to which a schedule only comes near. Raises RequestError for another name,
    an option that it does not have, t < 0, and values out of range.
    """
    if name not in WARMUPS:
        raise RequestError(
            f"There is no warm-up called {name!r}.", hint=f"There are: {', '.join(WARMUPS)}."
        )
    known = _options_of(name)
    if unknown := set(options) - set(known):
        raise RequestError(
            f"The warm-up {name!r} has no {min(unknown)!r}; it has {', '.join(known) or 'none'}."
        )
    check_count("The number of the update", t, 0)
    check_decay(decay, one=True)
    return WARMUPS[name](t, decay, **options)


@cache
def _options_of(name: str) -> tuple[str, ...]:
    return (*inspect.signature(WARMUPS[name]).parameters,)[2:]
