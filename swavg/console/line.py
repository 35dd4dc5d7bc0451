"""The values along a line as bars, the barriers, and the verdict."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np
from rich.text import Text

from swavg.console.page import Page
from swavg.console.text import block, values_text
from swavg.evaluation.landscape.line import Line, extent, verdict
from swavg.evaluation.survey import Metric, axis_title, scale
from swavg.short_repr import one_line

_WIDEST, _WIDTH = 56, 80
_HEIGHT = 8


def line_picture(line: Line, metric: Metric, names: Sequence[str]) -> None:
    """The values along the line as bars on stderr, the checkpoints marked below."""
    page = Page(sys.stderr)
    for text in line_lines(line, metric, names, page.console.width):
        page.line(text)


def line_lines(line: Line, metric: Metric, names: Sequence[str], width: int = _WIDTH) -> list[Text]:
    """The lines of the chart: a bar per column, interpolated between the points."""
    distances = [line.route.distance(t) for t in line.route.ts]
    values = np.array(line.series(metric)) * scale(metric)
    low, high = (bound * scale(metric) for bound in extent(line, metric))
    labels = [f"{high:.4g}", f"{low:.4g}"]
    margin = max(map(len, labels)) + 2
    columns = max(16, min(_WIDEST, width - margin - 1))
    at = np.linspace(distances[0], distances[-1], columns)
    filled = np.where(np.isfinite(values), values, np.inf)
    with np.errstate(invalid="ignore"):
        heights = np.interp(at, distances, np.minimum(filled, 2 * high - low))
    eighths = np.clip(np.rint((heights - low) / (high - low) * _HEIGHT * 8), 1, _HEIGHT * 8).astype(
        int
    )
    lines = [Text(axis_title(metric), "bold")]
    for level in range(_HEIGHT - 1, -1, -1):
        label = labels[0] if level == _HEIGHT - 1 else labels[1] if level == 0 else ""
        text = Text(f"{label:>{margin - 1}}│", "dim")
        cells = "".join(block(e, level) for e in eighths)
        text.append(cells.rstrip(), "cyan")
        lines.append(text)
    lines.append(Text(" " * (margin - 1) + "└" + "─" * columns, "dim"))
    signs = [" "] * columns
    length = distances[-1] - distances[0]
    points = [(line.route.distance(float(i)), _letter(i)) for i in range(len(names))]
    if len(names) == 2:
        points.insert(0, (line.route.distance(0.5), "*"))
    for distance, sign in points:
        signs[min(columns - 1, int((distance - distances[0]) / length * columns))] = sign
    lines.append(Text(" " * margin + "".join(signs).rstrip(), "bold"))
    return lines


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else "+"


def line_report(line: Line, names: Sequence[str]) -> None:
    """The values at the checkpoints and the mean, the barriers, and the verdict, on stderr."""
    page = Page(sys.stderr)
    rows = [(_letter(i), name, _at(line, i)) for i, name in enumerate(names)]
    rows.append(("*", "mean", values_text(line.mean.loss, line.mean.error)))
    widest = min(40, max(len(one_line(name)) for _, name, _ in rows))
    for sign, name, values in rows:
        page.line((sign, "bold"), f"  {one_line(name):<{widest}}  {values}")
    for index, barrier in enumerate(line.barriers("loss")):
        parts = [f"loss {barrier.height:.4g}"]
        if line.judged:
            parts.append(f"error {100 * line.barriers('error')[index].height:.2f} points")
        between = f"{_letter(index)} to {_letter(index + 1)}, "
        length = f"{line.route.lengths[index]:.4g} apart"
        text = f"barrier above the straight line: {', '.join(parts)} ({between}{length})"
        page.line(text, wrap=True)
    found = verdict(line)
    page.line(found.text, style="green" if found.safe else "yellow", wrap=True)


def _at(line: Line, index: int) -> str:
    loss, error = line.at(index, "loss"), line.at(index, "error")
    return values_text(loss, None if math.isnan(error) else error)
