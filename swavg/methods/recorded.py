"""What earlier averages say of themselves in their recipes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from swavg.errors import InputError, RequestError
from swavg.job import Path
from swavg.policy import Policy
from swavg.recipe import recipe_of


def is_number(value: object) -> bool:
    """True for a finite number that is no bool: metadata may hold anything."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return is_number(value) and value >= 1 and value == int(value)


def recorded(path: Path, method: str, key: str | None = None) -> dict[str, Any]:
    """The recipe of an EMA that can be continued; InputError if it is none."""
    found = recipe_of(path, key)
    whole = (
        _is_count(found.get("n"))
        and is_number(found.get("decay"))
        and (found.get("step") is None or is_number(found["step"]))
        and is_number(found.get("mass", 1.0))
    )
    if found.get("method") != method or not whole:
        raise InputError(
            path,
            f"is no {method} that swavg wrote: its metadata has no such recipe",
            hint=f"It says {found['method']}." if "method" in found else None,
        )
    return found


def counted(path: Path, count: int | None, key: str | None = None, option: str = "--count") -> int:
    """Of how many checkpoints ``path`` is the mean: ``count``, else as recorded."""
    if count is not None:
        if count < 1:
            raise RequestError(f"A mean of {count} checkpoints is none.")
        return count
    found = recipe_of(path, key)
    means = ("mean", "running mean", "sliding mean", "window")
    if found.get("method") not in means or not _is_count(found.get("n")):
        raise InputError(
            path,
            "does not say of how many checkpoints it is the mean",
            hint=f"Give the number with {option}.",
        )
    return int(found["n"])


def key_of(run: Mapping[str, Any]) -> str | None:
    """Where the state dict lies in the inputs, as the policy among the arguments says."""
    policy = run.get("policy")
    return policy.key if isinstance(policy, Policy) else None
