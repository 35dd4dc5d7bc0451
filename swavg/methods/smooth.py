"""The numbers of an EMA: from a decay, a half-life or a span to weights and what is recorded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from swavg import weights
from swavg.errors import RequestError

Unit = Literal["checkpoints", "steps"]


@dataclass(frozen=True, slots=True)
class Smoothing:
    """An EMA: ``decay`` per checkpoint, or per training step with ``per_step``; ``debias`` starts
    it from zero, corrected, instead of from the first checkpoint; ``warmup`` names a schedule of
    :data:`swavg.weights.WARMUPS`."""

    decay: float
    per_step: bool = False
    debias: bool = False
    warmup: str | None = None

    def __post_init__(self) -> None:
        if self.warmup is not None and (self.per_step or self.debias):
            raise RequestError("A warm-up goes with neither --per-step nor --debias.")

    def over(self, steps: Sequence[int | None]) -> tuple[float, ...]:
        """The weights of checkpoints at ``steps``, oldest first. Raises RequestError."""
        if self.warmup is not None:
            return weights.ema_with_decays(self.warmed_up(1, len(steps) - 1))
        if self.per_step:
            return weights.ema_by_step(known(steps), self.decay, debias=self.debias)
        return weights.ema(len(steps), self.decay, debias=self.debias)

    def warmed_up(self, start: int, updates: int) -> tuple[float, ...]:
        """The decays of ``updates`` updates, the first of them with t = ``start``."""
        assert self.warmup is not None
        return tuple(
            weights.warmup_decay(self.warmup, t, self.decay) for t in range(start, start + updates)
        )

    def _mass(self, steps: Sequence[int | None]) -> float:
        if not self.per_step:
            return weights.debias_mass((self.decay,) * (len(steps) - 1), first=self.decay)
        decays = weights.decays_by_step(known(steps), self.decay)
        return weights.debias_mass(decays) if decays else 1.0

    def details(self, steps: Sequence[int | None], n: int) -> dict[str, Any]:
        """What an output records, so that :func:`ema` can go on from it."""
        recorded: dict[str, Any] = {"n": n, "decay": self.decay, "per_step": self.per_step}
        if self.debias:
            recorded["debias"] = True
            recorded["mass"] = self._mass(steps)
        if self.warmup is not None:
            recorded["warmup"] = self.warmup
        return recorded | last_step(steps)


def known(steps: Sequence[int | None]) -> tuple[int, ...]:
    """The steps, all of which must be known; RequestError otherwise."""
    found = [step for step in steps if step is not None]
    if len(found) != len(steps):
        raise RequestError(
            f"{len(steps) - len(found)} of {len(steps)} checkpoints have no known step.",
            hint="Put the step into their names (step-1000.pt), or count in checkpoints.",
        )
    return tuple(found)


def last_step(steps: Sequence[int | None]) -> dict[str, Any]:
    """``{"step": the last}``, empty if it is not known."""
    return {} if not steps or steps[-1] is None else {"step": steps[-1]}


def amount(text: str, steps: Sequence[int | None]) -> tuple[float, Unit]:
    """``2000steps`` or ``3checkpoints`` (a bare number counts steps where all are known)."""
    found = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(steps?|checkpoints?|ckpts?)?\s*", text)
    try:
        value = float(found[1]) if found is not None else float("nan")
    except ValueError:
        value = float("nan")
    if found is None or value != value:
        raise RequestError(f"'{text}' is no number of steps or checkpoints.",
                           hint="Write 2000steps or 3checkpoints.")  # fmt: skip
    if found[2] is None:
        return value, "steps" if all(step is not None for step in steps) else "checkpoints"
    return value, "steps" if found[2].startswith("step") else "checkpoints"


def smoothing(
    steps: Sequence[int | None],
    *,
    decay: float | None = None,
    half_life: str | None = None,
    span: str | None = None,
    per_step: bool = False,
    debias: bool = False,
    warmup: str | None = None,
    counting: str | None = "step",
) -> Smoothing:
    """The EMA that exactly one of ``decay``, ``half_life`` and ``span`` describes.

    ``half_life`` and ``span`` are amounts (:func:`amount`). ``counting`` is the unit of the steps
    (``Series.unit``). Raises RequestError.
    """
    if sum(value is not None for value in (decay, half_life, span)) != 1:
        raise RequestError("Give one of --decay, --half-life and --span.")
    if decay is not None:
        return Smoothing(decay, per_step, debias, warmup)
    text = half_life if half_life is not None else span
    assert text is not None
    value, unit = amount(text, steps)
    if unit == "steps" and "step" in text and counting not in (None, "step"):
        raise RequestError(
            f"'{text}' is in steps, but the checkpoints count {counting}s.",
            hint=f"Leave the word out to count {counting}s, or count in checkpoints.",
        )
    if per_step and unit == "checkpoints":
        raise RequestError("--per-step counts steps; the amount is in checkpoints.")
    found = (
        weights.decay_from_half_life(value)
        if half_life is not None
        else weights.decay_from_span(value)
    )
    return Smoothing(found, unit == "steps", debias, warmup)
