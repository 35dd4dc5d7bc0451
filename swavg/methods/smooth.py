"""The numbers of an EMA: from a decay, a half-life or a span to weights and what is recorded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from swavg import weights
from swavg.errors import RequestError

Unit = Literal["checkpoints", "steps"]


@dataclass(frozen=True, slots=True)
class Smoothing:
    """What an EMA does with each checkpoint. Raises RequestError for what does not go together."""

    decay: float
    """Weight of what came before: per checkpoint, or per training step with ``per_step``."""
    per_step: bool = False
    debias: bool = False
    """Start from zero and correct for it, instead of from the first checkpoint."""
    warmup: str | None = None
    """A schedule of :data:`swavg.weights.WARMUPS` that grows to ``decay``."""

    def __post_init__(self) -> None:
        if self.warmup is not None and (self.per_step or self.debias):
            raise RequestError("A warm-up goes with neither per_step= nor debias=.")

    def weights_at(self, steps: Sequence[int | None]) -> tuple[float, ...]:
        """The weights of checkpoints at ``steps``, oldest first. Raises RequestError."""
        if self.warmup is not None:
            return weights.ema_with_decays(self.decays(len(steps) - 1))
        if self.per_step:
            return weights.ema_by_step(known(steps), self.decay, debias=self.debias)
        return weights.ema(len(steps), self.decay, debias=self.debias)

    def decays(self, updates: int, start: int = 1) -> tuple[float, ...]:
        """The decays per checkpoint of ``updates`` updates, the first of them update ``start``."""
        if self.warmup is None:
            return (self.decay,) * updates
        return tuple(
            weights.warmup_decay(self.warmup, t, self.decay) for t in range(start, start + updates)
        )

    def details(self, steps: Sequence[int | None], n: int) -> dict[str, object]:
        """What an EMA of ``n`` checkpoints, the last of them at ``steps``, records, so that it can
        be continued."""
        recorded: dict[str, object] = {"n": n, "decay": self.decay, "per_step": self.per_step}
        if self.debias:
            recorded["debias"] = True
            recorded["mass"] = self._mass(steps)
        if self.warmup is not None:
            recorded["warmup"] = self.warmup
        return recorded | last_step(steps)

    def _mass(self, steps: Sequence[int | None]) -> float:
        if not self.per_step:
            return weights.debias_mass((self.decay,) * (len(steps) - 1), first=self.decay)
        decays = weights.decays_by_step(known(steps), self.decay)
        return weights.debias_mass(decays) if decays else 1.0


def known(steps: Sequence[int | None]) -> tuple[int, ...]:
    """The steps, all of which must be known; RequestError otherwise."""
    found = tuple(step for step in steps if step is not None)
    if len(found) != len(steps):
        raise RequestError(
            f"{len(steps) - len(found)} of {len(steps)} checkpoints have no known step.",
            hint="Put the step into their names (step-1000.pt), or count in checkpoints.",
        )
    return found


def last_step(steps: Sequence[int | None]) -> dict[str, object]:
    """``{"step": the last}``, empty if it is not known."""
    return {} if not steps or steps[-1] is None else {"step": steps[-1]}


def amount(text: str, steps: Sequence[int | None]) -> tuple[float, Unit]:
    """``2000steps`` (or epochs, where these are what is counted) or ``3checkpoints``; a bare number
    counts steps where all are known.

    Raises RequestError for anything else.
    """
    parts = re.fullmatch(r"\s*([0-9.eE+-]+?)\s*(steps?|epochs?|checkpoints?|ckpts?)?\s*", text)
    try:
        value = float(parts[1]) if parts is not None else float("nan")
    except ValueError:
        value = float("nan")
    if parts is None or value != value:
        raise RequestError(f"'{text}' is no number of steps or checkpoints.",
                           hint="Write 2000steps or 3checkpoints.")  # fmt: skip
    if parts[2] is None:
        return value, "steps" if all(step is not None for step in steps) else "checkpoints"
    return value, "checkpoints" if parts[2].startswith("c") else "steps"


def counts_steps(half_life: str | None, span: str | None, *, per_step: bool) -> bool:
    """Whether an EMA needs the steps of all checkpoints, as far as what is asked for says so."""
    return per_step or any(map(_word_in, filter(None, (half_life, span))))


def _word_in(text: str) -> str | None:
    """What an amount says that it counts in the names of checkpoints."""
    return next((word for word in ("step", "epoch") if word in text), None)


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
        raise RequestError("Give one of decay=, half_life= and span=.")
    if decay is not None:
        return Smoothing(decay, per_step, debias, warmup)
    text = half_life if half_life is not None else span
    assert text is not None
    value, unit = amount(text, steps)
    word = _word_in(text)
    if word is not None and counting not in (None, word):
        raise RequestError(
            f"'{text}' is in {word}s, but the checkpoints count {counting}s.",
            hint=f"Write {value:g}checkpoints, or how many {counting}s these are.",
        )
    if per_step and unit == "checkpoints":
        raise RequestError("per_step= counts steps; the amount is in checkpoints.")
    from_amount = weights.decay_from_span if half_life is None else weights.decay_from_half_life
    return Smoothing(from_amount(value), unit == "steps", debias, warmup)
