"""How far work is, how fast it goes on, and how long it will take: ``12 of 140 GB, 610 MB/s, 3:30
left``."""

from __future__ import annotations

from collections import deque
from typing import Literal

from swavg.console.text import size, size_of

Unit = Literal["bytes", "batches", "points", "checkpoints", "evaluations"]

_WINDOW = 30.0
"""Seconds over which speed is measured: it changes with what is read."""
_APART = 1.0
"""Seconds between two samples, and before the first figure."""


class Pace:
    """What is known of work by what was noted of it; times are seconds of any one clock."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._samples: deque[tuple[float, int]] = deque()
        self._at = 0.0
        self._done = 0
        self._total: int | None = None

    def note(self, done: int, total: int | None, now: float) -> None:
        """``done`` is all there is by ``now``, also of an earlier run, which says nothing about the
        speed of this one."""
        self._at, self._done, self._total = now, done, total
        if not self._samples or now - self._samples[-1][0] >= _APART:
            self._samples.append((now, done))
        while len(self._samples) > 1 and self._samples[1][0] <= now - _WINDOW:
            self._samples.popleft()

    def text(self, now: float) -> str:
        """What to show ``now``, some time after the last note."""
        parts = [_amount(self._done, self._total, self._unit)]
        speed = self._speed()
        if speed and self._unit == "bytes":
            parts.append(f"{size(speed)}/s")
        if speed and self._total is not None and self._done < self._total:
            left = (self._total - self._done) / speed - (now - self._at)
            parts.append(f"{_clock(max(0.0, left))} left")
        return ", ".join(parts)

    def _speed(self) -> float:
        """0 if it is not known yet."""
        if not self._samples:
            return 0.0
        begun, before = self._samples[0]
        seconds = self._at - begun
        return (self._done - before) / seconds if seconds >= _APART else 0.0


def _amount(done: int, total: int | None, unit: Unit) -> str:
    if unit == "bytes":
        return size(done) if total is None else size_of(done, total)
    return f"{done:,} {unit}" if total is None else f"{done:,} of {total:,} {unit}"


def _clock(seconds: float) -> str:
    """``3:30``, ``1:03:30``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
