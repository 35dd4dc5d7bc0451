"""A series as people see it: a table of its checkpoints, and a chart of a metric over them."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swavg.console import _console, _plain, _table, size

if TYPE_CHECKING:
    from rich.table import Table

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_HEIGHT = 6
_WIDEST_BAR = 5
_MOST_METRICS = 3
_WIDTH = 80
_WAYS = {"min": "lower is better", "max": "higher is better", None: ""}
_SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}


@dataclass(frozen=True, slots=True)
class Row:
    """A checkpoint in the table. ``size`` (bytes) and ``dtypes`` (elements per dtype) are None
    where it cannot be read; ``chosen`` is None where nothing was asked for."""

    path: str
    step: int | None
    metrics: Mapping[str, float]
    size: int | None = None
    dtypes: Mapping[str, int] | None = None
    chosen: bool | None = None


def listing(
    rows: Sequence[Row],
    unit: str | None,
    metrics: Sequence[str],
    best: str | None,
    mode: str | None,
) -> None:
    """The table, and the chart of the metric ``best`` (None: no chart), on stdout.

    ``metrics`` are in the order of their importance; few have room.
    """
    console = _console(sys.stdout)
    shown = metrics[:_MOST_METRICS]
    where = _common_folder([row.path for row in rows])
    mixes = {"unreadable" if row.dtypes is None else _mix(row.dtypes) for row in rows}
    # What is the same in every row needs no column.
    facts = [where] if where else []
    facts.append(f"{len(rows)} checkpoint{'s' * (len(rows) != 1)}")
    if len(mixes) == 1:
        facts += mixes
    if any(row.chosen is not None for row in rows):
        facts.append(f"{sum(row.chosen is True for row in rows)} chosen")
    console.print(f"[dim]{_plain(' · '.join(facts))}[/]")
    console.print(_rows(rows, unit, shown, where, best, mode, mixed=len(mixes) > 1))
    if len(metrics) > len(shown):
        rest = ", ".join(metrics[_MOST_METRICS : _MOST_METRICS + 6])
        more = ", ..." if len(metrics) > _MOST_METRICS + 6 else ""
        console.print(f"[dim]more metrics: {_plain(rest)}{more}[/]")
    points = [row.metrics.get(best, math.nan) for row in rows] if best is not None else []
    if sum(map(math.isfinite, points)) > 1:
        assert best is not None
        width = min(console.width if sys.stdout.isatty() else _WIDTH, 100)
        console.print(f"[bold]{_plain(best)}[/] [dim]{_WAYS[mode]}[/]")
        for line in chart(rows, best, mode, unit or "checkpoint", width):
            console.print(line)


def _common_folder(paths: Sequence[str]) -> str:
    """The folder that all paths lie in, as they were given; empty if it is this one or several."""
    folders = {os.path.dirname(path.rstrip("/")) for path in paths}
    return folders.pop() if len(folders) == 1 else ""


def _rows(
    rows: Sequence[Row],
    unit: str | None,
    metrics: Sequence[str],
    where: str,
    best: str | None,
    mode: str | None,
    mixed: bool,
) -> Table:
    marked = any(row.chosen is not None for row in rows)
    headings = [""] * marked + [unit or "step", "checkpoint", "size"] + ["dtypes"] * mixed
    table = _table(*headings, *metrics)
    table.padding = (0, 1, 0, 0)
    for column in table.columns:
        if column.header not in ("checkpoint", "dtypes"):
            column.justify = "right"
            column.no_wrap = column.header not in metrics
    top = {name: _best_value(rows, name, mode if name == best else None) for name in metrics}
    for row in rows:
        name = row.path[len(where) :].lstrip("/") if where else row.path
        cells = [
            "-" if row.step is None else str(row.step),
            _plain(name),
            "-" if row.size is None else size(row.size),
        ]
        if mixed:
            cells.append("[red]unreadable[/]" if row.dtypes is None else _mix(row.dtypes))
        for metric in metrics:
            value = row.metrics.get(metric)
            text = "-" if value is None else f"{value:.5g}"
            is_best = value is not None and value == top[metric]
            cells.append(f"[bold green]{text}[/]" if is_best else text)
        if marked:
            cells.insert(0, "[bold green]●[/]" if row.chosen else " ")
        table.add_row(*cells, style="" if row.chosen in (None, True) else "dim")
    return table


def _mix(dtypes: Mapping[str, int]) -> str:
    total = sum(dtypes.values()) or 1
    parts = [
        f"{_SHORT.get(name, name)}"
        + (f" {share:.0%}" if 0.005 <= (share := count / total) < 0.995 else "")
        for name, count in sorted(dtypes.items(), key=lambda item: -item[1])
        if count / total >= 0.005
    ]
    return ", ".join(parts) or "-"


def _best_value(rows: Sequence[Row], metric: str, mode: str | None) -> float | None:
    values = [
        row.metrics[metric] for row in rows if math.isfinite(row.metrics.get(metric, math.nan))
    ]
    if not values or mode is None:
        return None
    return min(values) if mode == "min" else max(values)


def chart(
    rows: Sequence[Row], metric: str, mode: str | None, unit: str, width: int = _WIDTH
) -> list[str]:
    """Lines of rich markup: a bar for each checkpoint in order (several share one where there are
    more than columns), the range at the left, the best marked below."""
    values = [row.metrics.get(metric, math.nan) for row in rows]
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    labels = [f"{high:.4g}", f"{low:.4g}"]
    margin = max(map(len, labels)) + 1
    room = max(width - margin - 2, 8)
    best_of = min if mode == "min" else max
    best = None if mode is None else values.index(best_of(finite))
    share = -(-len(values) // room)
    groups = [values[i : i + share] for i in range(0, len(values), share)]
    bars = [
        best_of(found) if (found := [v for v in group if math.isfinite(v)]) else math.nan
        for group in groups
    ]
    slot = max(1, min(_WIDEST_BAR + 1, room // len(bars)))
    gap = 1 if slot > 1 else 0
    lines = []
    for level in range(_HEIGHT - 1, -1, -1):
        label = labels[0] if level == _HEIGHT - 1 else labels[1] if level == 0 else ""
        cells = []
        for index, value in enumerate(bars):
            members = rows[index * share : (index + 1) * share]
            block = _block(value, low, high, level) * (slot - gap)
            style = _style(members, best is not None and index == best // share)
            cells.append((f"[{style}]{block}[/]" if block.strip() else block) + " " * gap)
        lines.append(f"[dim]{label:>{margin - 1}}[/] │" + "".join(cells).rstrip())
    first, last = rows[0].step, rows[-1].step
    length = len(bars) * slot - gap
    lines.append(" " * margin + "└" + "─" * length)
    if first is not None and last is not None:
        ends = f"{first}{last!s:>{max(length - len(str(first)), len(str(last)) + 1)}}"
        lines.append(" " * (margin + 1) + f"[dim]{ends}[/]")
    if best is None:
        return lines
    at = (best // share) * slot + (slot - gap) // 2
    step = "" if rows[best].step is None else f" at {unit} {rows[best].step}"
    note = f"best {values[best]:.5g}{step}"
    mark = f"▲ {note}" if at + len(note) + 2 <= room else f"{note} ▲"
    place = at if mark.startswith("▲") else max(at - len(note) - 1, 0)
    lines.append(" " * (margin + 1 + place) + f"[bold green]{_plain(mark)}[/]")
    return lines


def _style(members: Sequence[Row], is_best: bool) -> str:
    if is_best:
        return "bold green"
    return "cyan" if any(row.chosen in (None, True) for row in members) else "bright_black"


def _block(value: float, low: float, high: float, level: int) -> str:
    """The part of a bar at a level of the chart: the lowest value still has an eighth."""
    if not math.isfinite(value):
        return "?" if level == 0 else " "
    share = 1.0 if high == low else (value - low) / (high - low)
    eighths = max(1, round(share * _HEIGHT * 8)) - level * 8
    return _EIGHTHS[max(0, min(8, eighths))]
