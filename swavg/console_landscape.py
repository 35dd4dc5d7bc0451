"""Surveys on a terminal: progress with the time left, a coarse picture in blocks, and figures."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from swavg.console import _console, _plain
from swavg.landscape.levels import Levels
from swavg.landscape.line import Line, extent, number, verdict
from swavg.landscape.smooth import panel_levels, smoothed
from swavg.landscape.surface import Metric, Place, Surface

if TYPE_CHECKING:
    from rich.text import Text

_BANDS = 6
# From low to high: the bands' backgrounds, and what stands for them without colours.
_COLOURS = ("#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725")
_SHADES = (" ", "·", "░", "▒", "▓", "█")
_WIDEST, _TALLEST = 56, 26
# A cell of a terminal is about twice as high as it is wide.
_CELL = 2.0
_WIDTH = 80


@contextmanager
def progress_bar(shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar of points on stderr with the time left; None where stderr is no terminal."""
    if not shown or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("evaluating"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("points"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        console=_console(sys.stderr),
        transient=True,
    )
    task = None

    def update(done: int, total: int) -> None:
        nonlocal task
        if task is None:
            # Points of an earlier run say nothing about the speed of this one.
            task = bar.add_task("evaluating", total=total, completed=done)
        bar.update(task, completed=done)

    with bar:
        yield update


def interrupted(done: int, total: int, path: str) -> None:
    """That the run can go on, on stderr."""
    console = _console(sys.stderr)
    console.print(f"[yellow]interrupted[/] {done} of {total} points are in {_plain(path)}")
    console.print("            the same command goes on from there")


def dry_run(facts: Sequence[tuple[str, str]]) -> None:
    """What would be computed, on stdout."""
    console = _console(sys.stdout)
    for label, value in facts:
        console.print(f"[bold]{label:<12}[/] {_plain(value)}")


def surface_picture(surface: Surface, metric: Metric) -> None:
    """The surface in blocks on stderr."""
    console = _console(sys.stderr)
    # Of sixteen colours no six are in order.
    coloured = console.color_system in ("256", "truecolor") and not console.no_color
    for line in surface_lines(surface, metric, console.width, coloured=coloured):
        console.print(line, no_wrap=True)


def surface_report(surface: Surface, metrics: Sequence[Metric]) -> None:
    """The values at the named points, and the lowest on the grid, on stderr."""
    console = _console(sys.stderr)
    for line in _key(surface, metrics):
        console.print(line)


def surface_lines(
    surface: Surface, metric: Metric, width: int = _WIDTH, *, coloured: bool = False
) -> list[Text]:
    """The lines of the picture: cells in the colour of their band, or its shade without
    colours; the points by their signs; at the right what the bands mean."""
    from rich.text import Text

    levels = panel_levels(surface, metric, bands=_BANDS)
    legend = _legend(levels, metric, coloured)
    room = max(16, min(_WIDEST, width - max(map(len, legend)) - 2))
    cells = _cells(surface, metric, levels, room)
    marks = _marks(surface, _signs(surface), cells.shape[1], cells.shape[0])
    # A sign among shades is seen only with room around it.
    named = {at for at, sign in marks.items() if sign != "•"}
    rows, columns = cells.shape
    lines = []
    top = max(0, (rows - len(legend)) // 2)
    for row in range(rows):
        line = Text()
        # The first row of the picture is the highest y.
        for column in range(columns):
            band = int(cells[rows - 1 - row, column])
            sign = marks.get((rows - 1 - row, column))
            if not coloured:
                beside = any((rows - 1 - row, column + side) in named for side in (-1, 1))
                line.append(sign or (" " if beside else _SHADES[band]))
            else:
                ink = "black" if band >= 3 else "white"
                line.append(sign or " ", f"{'bold ' if sign else ''}{ink} on {_COLOURS[band]}")
        if 0 <= row - top < len(legend):
            line.append("  ")
            line.append_text(legend[row - top])
        lines.append(line)
    return lines


def _signs(surface: Surface) -> list[str]:
    """One character per named place: 1 2 3 for the corners, * for the average, letters."""
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    digits = iter("123")
    found = []
    for place in surface.named:
        if place.kind == "corner":
            found.append(next(digits))
        else:
            found.append("*" if place.kind == "average" else next(letters, "z"))
    return found


def _cells(surface: Surface, metric: Metric, levels: Levels, room: int) -> np.ndarray[Any, Any]:
    """The band of every cell, from the lowest y up; the picture keeps the plane's proportions."""
    xs, ys, values = smoothed(surface, metric, levels)
    high, wide = ys[-1] - ys[0], xs[-1] - xs[0]
    rows = min(_TALLEST, max(4, round(room * high / wide / _CELL)))
    columns = min(room, max(8, round(rows * _CELL * wide / high)))
    # The value at the middle of each cell.
    at_y = ((np.arange(rows) + 0.5) / rows * len(ys)).astype(int)
    at_x = ((np.arange(columns) + 0.5) / columns * len(xs)).astype(int)
    bands = np.searchsorted(levels.edges, values[np.ix_(at_y, at_x)], side="right") - 1
    found: np.ndarray[Any, Any] = np.clip(bands, 0, levels.bands - 1)
    return found


def _marks(
    surface: Surface, signs: Sequence[str], columns: int, rows: int
) -> dict[tuple[int, int], str]:
    """The sign at (row from the lowest y, column); named points above those of a trail."""
    xs, ys = surface.grid.xs, surface.grid.ys

    def cell(place: Place) -> tuple[int, int]:
        across = (place.position.x - xs[0]) / (xs[-1] - xs[0]) * columns
        up = (place.position.y - ys[0]) / (ys[-1] - ys[0]) * rows
        return min(rows - 1, max(0, int(up))), min(columns - 1, max(0, int(across)))

    found = {cell(place): "•" for place in surface.trail}
    # The corners and the average come last: they hide what lies on them.
    for place, sign in reversed([*zip(surface.named, signs, strict=True)]):
        found[cell(place)] = sign
    return found


def _legend(levels: Levels, metric: Metric, coloured: bool) -> list[Text]:
    """A line per band, the highest first: its colour or shade, and where it ends."""
    from rich.text import Text

    texts = levels.texts
    widest = max(map(len, texts))
    lines = [Text("error rate (%)" if metric == "error" else "loss", "bold")]
    for band in range(levels.bands - 1, -1, -1):
        line = Text()
        if not coloured:
            line.append(_SHADES[band] * 2)
        else:
            line.append("  ", f"on {_COLOURS[band]}")
        last = band == len(levels.edges) - 1
        line.append(
            f" from {texts[band]:>{widest}}" if last else f" to   {texts[band + 1]:>{widest}}"
        )
        lines.append(line)
    return lines


def _key(surface: Surface, metrics: Sequence[Metric]) -> list[Text]:
    """A line per named point: its sign, name, loss and error rate."""
    from rich.text import Text

    named = surface.named
    widest = min(40, max(len(_printed(place.name)) for place in named))
    lines = []
    for place, sign in zip(named, _signs(surface), strict=True):
        line = Text()
        line.append(sign, "bold")
        line.append(f"  {_printed(place.name):<{widest}}  {_values(place.loss, place.error)}")
        lines.append(line)
    if surface.trail:
        lines.append(Text(f"•  {len(surface.trail)} checkpoints of the series, projected"))
    for metric in metrics:
        x, y, value = surface.lowest(metric)
        shown = f"{value:.2%}" if metric == "error" else f"{value:.4g}"
        lines.append(Text(f"lowest {metric} on the grid: {shown} at ({x:.3g}, {y:.3g})", "dim"))
    return lines


def _printed(name: str) -> str:
    from swavg.console import printable

    return printable(name).replace("\n", "\\n")


def _values(loss: float | None, error: float | None) -> str:
    parts = [] if loss is None else [f"loss {loss:.4g}"]
    parts += [] if error is None else [f"error {error:.2%}"]
    return "  ".join(parts)


def distances_note(surface: Surface) -> list[str]:
    """Which points do not lie in the plane, where the picture shows their projection."""
    corners = [place.position for place in surface.places if place.kind == "corner"]
    extent = max(math.hypot(p.x, p.y) for p in corners)
    return [
        f"{_printed(place.name)} lies {place.position.off:.3g} off the plane (W1 and W2 are"
        f" {corners[1].x:.3g} apart): it is drawn where it projects, with its own loss"
        for place in surface.places
        if place.kind == "mark" and place.position.off > 0.01 * extent
    ]


_EIGHTHS = " ▁▂▃▄▅▆▇█"
_HEIGHT = 8


def line_picture(line: Line, metric: Metric, names: Sequence[str]) -> None:
    """The values along the line as bars on stderr, the checkpoints marked below."""
    console = _console(sys.stderr)
    for text in line_lines(line, metric, names, console.width):
        console.print(text, no_wrap=True)


def line_lines(line: Line, metric: Metric, names: Sequence[str], width: int = _WIDTH) -> list[Text]:
    """The lines of the chart: a bar per column, interpolated between the points."""
    from rich.text import Text

    distances = [line.route.distance(t) for t in line.route.ts]
    scale = 100.0 if metric == "error" else 1.0
    values = np.array(line.series(metric)) * scale
    low, high = (bound * scale for bound in extent(line, metric))
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
    lines = [Text("error rate (%)" if metric == "error" else "loss", "bold")]
    for level in range(_HEIGHT - 1, -1, -1):
        label = labels[0] if level == _HEIGHT - 1 else labels[1] if level == 0 else ""
        text = Text(f"{label:>{margin - 1}}│", "dim")
        cells = "".join(_EIGHTHS[min(8, max(0, e - 8 * level))] for e in eighths)
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
    console = _console(sys.stderr)
    rows = [(_letter(i), name, _at(line, i)) for i, name in enumerate(names)]
    rows.append(("*", "mean", _values(line.mean.loss, line.mean.error)))
    widest = min(40, max(len(_printed(name)) for _, name, _ in rows))
    for sign, name, values in rows:
        console.print(f"[bold]{sign}[/]  {_plain(_printed(name)):<{widest}}  {values}")
    for index, barrier in enumerate(line.barriers("loss")):
        parts = [f"loss {barrier.height:.4g}"]
        if line.judged:
            parts.append(f"error {100 * line.barriers('error')[index].height:.2f} points")
        between = f"{_letter(index)} to {_letter(index + 1)}, "
        length = f"{line.route.lengths[index]:.4g} apart"
        console.print(f"barrier above the straight line: {', '.join(parts)} ({between}{length})")
    found = verdict(line)
    console.print(f"[{'green' if found.safe else 'yellow'}]{found.text}[/]")


def _at(line: Line, index: int) -> str:
    loss = line.at(index, "loss")
    error = number(line.values[line.route.ts.index(float(index))], "error")
    return _values(loss, None if math.isnan(error) else error)
