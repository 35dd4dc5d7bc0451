"""What every schedule asks of its arguments; each check raises RequestError and names the value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from swavg.errors import RequestError


def short(value: object) -> str:
    """``value`` as Python shows it, or the name of its class where that is long, as a model's."""
    text = repr(value)
    return text if len(text) <= 40 and "\n" not in text else type(value).__name__


def check_count(what: str, count: float, least: int = 1) -> None:
    """``count`` is whole and at least ``least``."""
    try:
        whole = bool(not isinstance(count, (bool, str)) and count % 1 == 0)
    except (TypeError, ValueError, RuntimeError):
        whole = False
    if not whole:
        raise RequestError(f"{what} is {short(count)}; it must be a whole number.")
    if count < least:
        raise RequestError(f"{what} is {count}; it must be at least {least}.")


def check_decay(decay: float, *, one: bool = False) -> None:
    """0 <= ``decay`` < 1: at 1 a new checkpoint would never count. With ``one``, where some
    schedules end, that will do."""
    try:
        inside = 0 <= decay < 1 or (one and decay == 1)
    except TypeError:
        inside = False
    if not inside:
        raise RequestError(
            f"The decay {short(decay)} is not in [0, 1{']' if one else ')'}.",
            hint="0 keeps only the newest checkpoint; 0.999 remembers about 1000.",
        )


def check_positive(what: str, value: float) -> None:
    """``value`` is a finite number above 0."""
    if not 0 < value < math.inf:
        raise RequestError(f"{what} is {value}; it must be a number above 0.")


def check_steps(steps: Sequence[float]) -> None:
    """``steps`` are finite, at least one, each larger than the one before."""
    if not steps:
        raise RequestError("There is nothing to average.")
    for step in steps:
        if not math.isfinite(step):
            raise RequestError(f"The step {step} is not a finite number.")
    for earlier, later in pairwise(steps):
        if later <= earlier:
            raise RequestError(
                f"Step {later} comes after step {earlier}: steps must increase.",
                hint="Give the checkpoints in the order of their steps, each step once.",
            )
