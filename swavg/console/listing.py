"""What ``swavg list`` prints: a table of the checkpoints, and a chart of a metric over them."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from swavg.console.chart import chart
from swavg.console.page import Cell, Column, Page, Row
from swavg.console.text import counted, mix, printable, size

_MOST_METRICS = 3
_WIDTH = 80
_WAYS = {"min": "lower is better", "max": "higher is better", None: ""}


@dataclass(frozen=True, slots=True)
class Listed:
    """A checkpoint of a series."""

    path: str
    step: int | None
    metrics: Mapping[str, float]
    size: int | None = None
    """Bytes on disk; None where it cannot be read."""
    dtypes: Mapping[str, int] | None = None
    """Elements per dtype; None where it cannot be read."""
    chosen: bool | None = None
    """None where nothing was asked for."""

    @property
    def mix(self) -> str:
        if self.dtypes is None:
            return "unreadable"
        return ", ".join(mix(self.dtypes, short=True)) or "-"


def listing(
    series: Sequence[Listed],
    unit: str | None,
    metrics: Sequence[str],
    best: str | None,
    mode: str | None,
) -> None:
    """The table, and the chart of the metric ``best`` (None: no chart), on stdout.

    ``metrics`` are in the order of their importance; few have room.
    """
    page = Page(sys.stdout)
    folder = _common_folder([listed.path for listed in series])
    mixes = {listed.mix for listed in series}
    # What is the same in every row needs no column.
    facts = [folder] if folder else []
    facts.append(counted(len(series), "checkpoint"))
    if len(mixes) == 1:
        facts += mixes
    if any(listed.chosen is not None for listed in series):
        facts.append(f"{sum(listed.chosen is True for listed in series)} chosen")
    page.line(printable(" · ".join(facts)), style="dim")
    modes = {name: mode if name == best else None for name in metrics[:_MOST_METRICS]}
    _table(page, series, unit or "step", modes, folder, mixed=len(mixes) > 1)
    if len(metrics) > _MOST_METRICS:
        rest = ", ".join(metrics[_MOST_METRICS : _MOST_METRICS + 6])
        more = ", ..." if len(metrics) > _MOST_METRICS + 6 else ""
        page.line(printable(f"more metrics: {rest}{more}"), style="dim")
    values = [listed.metrics.get(best, math.nan) for listed in series] if best is not None else []
    if sum(map(math.isfinite, values)) > 1:
        page.line((printable(best or ""), "bold"), " ", (_WAYS[mode], "dim"))
        steps = [listed.step for listed in series]
        shown = [listed.chosen in (None, True) for listed in series]
        width = min(page.width or _WIDTH, 100)
        for line in chart(values, steps, shown, mode, unit or "checkpoint", width):
            page.line(line)


def _common_folder(paths: Sequence[str]) -> str:
    """The folder that all paths lie in, as they were given; empty if it is this one or several."""
    folders = {os.path.dirname(path.rstrip("/")) for path in paths}
    return folders.pop() if len(folders) == 1 else ""


def _table(
    page: Page,
    series: Sequence[Listed],
    unit: str,
    modes: Mapping[str, str | None],
    folder: str,
    *,
    mixed: bool,
) -> None:
    marked = any(listed.chosen is not None for listed in series)
    columns = [Column("", True)] if marked else []
    columns += [Column(unit, True), Column("checkpoint", folds=True)]
    columns += [Column("size", True, drop=1)]
    columns += [Column("dtypes", folds=True)] if mixed else []
    columns += [Column(printable(name), True, folds=True) for name in modes]
    top = {name: _best_value(series, name, mode) for name, mode in modes.items()}
    texts = {name: _aligned([listed.metrics.get(name) for listed in series]) for name in modes}
    rows = []
    for number, listed in enumerate(series):
        name = listed.path[len(folder) :].lstrip("/") if folder else listed.path
        cells: list[Cell] = [("●", "bold green") if listed.chosen else " "] if marked else []
        cells += ["-" if listed.step is None else str(listed.step), printable(name)]
        cells += ["-" if listed.size is None else size(listed.size)]
        if mixed:
            cells.append((listed.mix, "red") if listed.dtypes is None else listed.mix)
        for metric in modes:
            value = listed.metrics.get(metric)
            text = texts[metric][number]
            is_best = value is not None and value == top[metric]
            cells.append((text, "bold green") if is_best else text)
        rows.append(Row(cells, None if listed.chosen in (None, True) else "dim"))
    page.table(columns, rows, framed=True)


def _aligned(values: Sequence[float | None]) -> list[str]:
    """Five digits of each, with equal decimals where none needs an exponent."""
    texts = ["-" if value is None else f"{value:.5g}" for value in values]
    if any("e" in text for text in texts):
        return texts
    decimals = max(len(text.partition(".")[2]) for text in texts)
    return ["-" if value is None else f"{value:.{decimals}f}" for value in values]


def _best_value(series: Sequence[Listed], metric: str, mode: str | None) -> float | None:
    values = [listed.metrics.get(metric, math.nan) for listed in series]
    finite = [value for value in values if math.isfinite(value)]
    if not finite or mode is None:
        return None
    return min(finite) if mode == "min" else max(finite)
