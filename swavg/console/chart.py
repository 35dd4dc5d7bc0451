"""A metric over the checkpoints of a series, as upright bars."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.text import Text

from swavg.console.text import block

_HEIGHT = 6
_WIDEST_BAR = 5


def chart(
    values: Sequence[float],
    steps: Sequence[int | None],
    chosen: Sequence[bool],
    mode: str | None,
    unit: str,
    width: int,
) -> list[Text]:
    """A bar for each of ``values`` in order (several share one where there are more than columns),
    the range at the left, the best marked below. Two at least are finite."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    labels = {_HEIGHT - 1: f"{high:.4g}", 0: f"{low:.4g}"}
    margin = max(map(len, labels.values())) + 1
    room = max(width - margin - 2, 8)
    best_of = min if mode == "min" else max
    best = None if mode is None else values.index(best_of(finite))
    share = -(-len(values) // room)
    bars = []
    for first in range(0, len(values), share):
        group = values[first : first + share]
        bars.append(best_of((v for v in group if math.isfinite(v)), default=math.nan))
    slot = max(1, min(_WIDEST_BAR + 1, room // len(bars)))
    gap = 1 if slot > 1 else 0
    styles = [
        "cyan" if any(chosen[i * share : (i + 1) * share]) else "bright_black"
        for i in range(len(bars))
    ]
    if best is not None:
        styles[best // share] = "bold green"
    lines = []
    for level in range(_HEIGHT - 1, -1, -1):
        line = Text.assemble((f"{labels.get(level, ''):>{margin - 1}}", "dim"), " │")
        for value, style in zip(bars, styles, strict=True):
            line.append(_cell(value, low, high, level) * (slot - gap), style)
            line.append(" " * gap)
        line.rstrip()
        lines.append(line)
    length = len(bars) * slot - gap
    lines.append(Text(" " * margin + "└" + "─" * length))
    ends = [str(step) for step in (steps[0], steps[-1]) if step is not None]
    if len(ends) == 2:
        room_right = max(length - len(ends[0]), len(ends[1]) + 1)
        lines.append(
            Text.assemble(" " * (margin + 1), (f"{ends[0]}{ends[1]:>{room_right}}", "dim"))
        )
    if best is None:
        return lines
    at = (best // share) * slot + (slot - gap) // 2
    step = "" if steps[best] is None else f" at {unit} {steps[best]}"
    note = f"best {values[best]:.5g}{step}"
    fits = at + len(note) + 2 <= room
    mark = f"▲ {note}" if fits else f"{note} ▲"
    place = at if fits else max(at - len(note) - 1, 0)
    lines.append(Text.assemble(" " * (margin + 1 + place), (mark, "bold green")))
    return lines


def _cell(value: float, low: float, high: float, level: int) -> str:
    """The part of a bar at a level of the chart: the lowest value still has an eighth."""
    if not math.isfinite(value):
        return "?" if level == 0 else " "
    share = 1.0 if high == low else (value - low) / (high - low)
    return block(max(1, round(share * _HEIGHT * 8)), level)
