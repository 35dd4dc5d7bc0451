"""What earlier averages say of themselves in their recipes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from swavg.engine.recipe import recorded_in
from swavg.errors import InputError, RequestError
from swavg.formats.checkpoint import Extras
from swavg.formats.parts import open_whole
from swavg.formats.tensors import Shared
from swavg.methods.smooth import Smoothing
from swavg.planning.row import Path

_MEANS = ("mean", "running mean", "sliding mean", "window", "greedy soup")


@dataclass(frozen=True, slots=True)
class Earlier:
    """An average that is to be continued."""

    path: str
    recipe: Mapping[str, object]
    key: str | None
    """As in :class:`swavg.planning.policy.Policy`."""
    shared: Shared
    """What was read of it, and will be of what is added to it."""
    extras: Extras
    """What it holds besides tensors."""
    of_parts: bool
    """Whether it is a composite, as is then what is added to it."""

    @classmethod
    def open(cls, path: Path, key: str | None, shared: Shared | None = None) -> Earlier:
        """The average at ``path``. InputError if it cannot be opened."""
        shared = Shared() if shared is None else shared
        opened = open_whole(path, key=key, shared=shared)
        of_parts = opened.format == "composite"
        return cls(os.fspath(path), recorded_in(opened), key, shared, opened.extras, of_parts)

    @property
    def steps(self) -> int | None:
        """Of how many training steps it is the running average, as icefall says."""
        steps = self.extras.scalars.get("batch_idx_train")
        return int(steps) if _is_count(steps) else None


@dataclass(frozen=True, slots=True)
class EarlierEma:
    """An EMA that can be continued."""

    smoothing: Smoothing
    n: int
    """How many checkpoints it holds."""
    step: float | None
    """That of the last of them, None if it is not known."""
    mass: float
    """:func:`swavg.weights.debias_mass`; 1 if it was started from the first."""


def earlier_ema(average: Earlier) -> EarlierEma:
    """The EMA, as its recipe says. InputError if it is none that swavg wrote."""
    recipe = average.recipe
    n, decay, step = recipe.get("n"), recipe.get("decay"), recipe.get("step")
    mass, warmup = recipe.get("mass", 1.0), recipe.get("warmup")
    if (
        recipe.get("method") != "ema"
        or not _is_count(n)
        or not is_number(decay)
        or not (step is None or is_number(step))
        or not is_number(mass)
    ):
        raise InputError(
            average.path,
            "is no ema that swavg wrote: its metadata has no such recipe",
            hint=f"It says {recipe['method']}." if "method" in recipe else None,
        )
    per_step, debias = bool(recipe.get("per_step")), bool(recipe.get("debias"))
    smoothing = Smoothing(decay, per_step, debias, None if warmup is None else str(warmup))
    return EarlierEma(smoothing, int(n), step, float(mass))


def counted(average: Earlier, count: int | None, argument: str = "count") -> int:
    """Of how many checkpoints it is the mean: ``count``, else as its recipe says.

    Raises RequestError for a count below 1, and InputError where none is recorded.
    """
    if count is not None:
        if count < 1:
            raise RequestError(f"A mean of {count} checkpoints is none.")
        return count
    n = average.recipe.get("n")
    if average.recipe.get("method") not in _MEANS or not _is_count(n):
        raise InputError(
            average.path,
            "does not say of how many checkpoints it is the mean",
            hint=f"Give the number with {argument}=.",
        )
    return int(n)


def is_number(value: object) -> TypeGuard[int | float]:
    """True for a finite number that is no bool: metadata may hold anything."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object) -> TypeGuard[int | float]:
    return is_number(value) and value >= 1 and value == int(value)
