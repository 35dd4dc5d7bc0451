"""Evaluated checkpoints as a table, the best first."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from swavg.console.page import Cell, Column, Page, Row
from swavg.console.text import counted, printable
from swavg.engine.recipe import short_names
from swavg.evaluation.ranking import Measure, Ranking
from swavg.evaluation.survey import Metric, Value
from swavg.short_repr import one_line

_WAYS = {"min": "lower is better", "max": "higher is better"}


def ranking_table(ranking: Ranking) -> None:
    """All of them, and which is best, on stderr."""
    page = Page(sys.stderr)
    entries, measure = ranking.entries, ranking.measure
    names = [one_line(name) for name in short_names([entry.path for entry in entries])]
    # What decides comes first; what nothing has needs no column.
    others: list[Metric] = [each for each in ("loss", "error") if each != measure.metric]
    metrics = [measure.metric, *others]
    shown = [m for m in metrics if any(getattr(e.value, m) is not None for e in entries)]
    stepped = any(entry.step is not None for entry in entries)
    columns = [Column("checkpoint", folds=True)]
    columns += [Column("step", True)] if stepped else []
    columns += [Column(_title(metric, measure), True) for metric in shown]
    texts = {metric: _texts([entry.value for entry in entries], metric) for metric in shown}
    rows = []
    for place, (entry, name) in enumerate(zip(entries, names, strict=True)):
        best = "bold green" if entry is ranking.best else ""
        cells: list[Cell] = [(name, best)]
        cells += ["-" if entry.step is None else str(entry.step)] if stepped else []
        cells += [(texts[m][place], best if m == measure.metric else "") for m in shown]
        rows.append(Row(cells))
    examples = entries[0].value.examples
    seen = "" if examples is None else f" on {counted(examples, 'example')}"
    title = f"{counted(len(entries), 'checkpoint')}{seen}; {_WAYS[measure.mode]}"
    page.line(title, style="dim")
    page.table(columns, rows, framed=True)
    if ranking.best is None:
        page.line(("best: none", "yellow"))
        return
    value = f"{_title(measure.metric, measure)} {texts[measure.metric][0]}"
    page.line(("best", "bold green"), f": {one_line(ranking.best.path)}, {value}", wrap=True)


def _title(metric: Metric, measure: Measure) -> str:
    return printable(measure.name) if metric == "metric" else metric


def _texts(values: Sequence[Value], metric: Metric) -> list[str]:
    """With as many decimals as give the smallest five digits; error rates in percent."""
    numbers: list[float | None] = [getattr(value, metric) for value in values]
    if metric == "error":
        return ["-" if number is None else f"{number:.2%}" for number in numbers]
    sizes = [abs(number) for number in numbers if number and math.isfinite(number)]
    decimals = 4 - math.floor(math.log10(min(sizes, default=1.0)))
    form = f".{decimals}f" if 0 <= decimals <= 8 and max(sizes, default=1.0) < 1e6 else ".5g"
    return ["-" if number is None else f"{number:{form}}" for number in numbers]
