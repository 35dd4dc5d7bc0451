"""A surface in blocks, with its points and their values."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.text import Text

from swavg.console.page import Page
from swavg.console.text import values_text
from swavg.evaluation.landscape.levels import Levels
from swavg.evaluation.landscape.surface import Place, Surface
from swavg.evaluation.survey import Metric, axis_title, scale
from swavg.short_repr import one_line

_BANDS = 6
# From low to high: the bands' backgrounds, and what stands for them without colours.
_COLOURS = ("#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725")
_SHADES = (" ", "·", "░", "▒", "▓", "█")
_WIDEST, _TALLEST = 56, 26
# A cell of a terminal is about twice as high as it is wide.
_CELL = 2.0
_WIDTH = 80


def surface_picture(surface: Surface, metric: Metric) -> None:
    """The surface in blocks on stderr."""
    page = Page(sys.stderr)
    console = page.console
    # Of sixteen colours no six are in order.
    coloured = console.color_system in ("256", "truecolor") and not console.no_color
    for line in surface_lines(surface, metric, console.width, coloured=coloured):
        page.line(line)


def surface_report(surface: Surface, metrics: Sequence[Metric]) -> None:
    """The values at the named points, and their range on the grid, on stderr."""
    page = Page(sys.stderr)
    for line in _key(surface, metrics):
        page.line(line, wrap=True)


def surface_lines(
    surface: Surface, metric: Metric, width: int = _WIDTH, *, coloured: bool = False
) -> list[Text]:
    """The lines of the picture: cells in the colour of their band, or its shade without
    colours; the points by their signs; at the right what the bands mean."""
    levels = surface.levels(metric, _BANDS)
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
            if band < 0:
                line.append(sign or "?", "bold" if sign else "dim")
            elif not coloured:
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
    """The band of every cell, from the lowest y up, -1 where nothing is known; the picture keeps
    the plane's proportions."""
    xs, ys = surface.grid.xs, surface.grid.ys
    high, wide = ys[-1] - ys[0], xs[-1] - xs[0]
    rows = min(_TALLEST, max(4, round(room * high / wide / _CELL)))
    columns = min(room, max(8, round(rows * _CELL * wide / high)))
    # The value at the middle of each cell, on straight lines between the points around it.
    at_y = ys[0] + high * (np.arange(rows) + 0.5) / rows
    at_x = xs[0] + wide * (np.arange(columns) + 0.5) / columns
    values = surface.values(metric) * scale(metric)
    values = np.where(np.isfinite(values), values, np.nan)
    across = np.array([np.interp(at_x, xs, row) for row in values])
    cells = np.array([np.interp(at_y, ys, column) for column in across.T]).T
    bands = np.searchsorted(levels.edges, cells, side="right") - 1
    return np.where(np.isfinite(cells), np.clip(bands, 0, levels.bands - 1), -1)


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
    texts = levels.texts
    widest = max(map(len, texts))
    lines = [Text(axis_title(metric), "bold")]
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
    named = surface.named
    widest = min(40, max(len(one_line(place.name)) for place in named))
    lines = []
    for place, sign in zip(named, _signs(surface), strict=True):
        line = Text()
        line.append(sign, "bold")
        line.append(f"  {one_line(place.name):<{widest}}  {values_text(place.loss, place.error)}")
        lines.append(line)
    if surface.trail:
        lines.append(Text(f"•  {len(surface.trail)} checkpoints of the series, projected"))
    for metric in metrics:
        (x, y, _), extent = surface.lowest(metric), surface.range_text(metric)
        text = f"{metric} on the grid: {extent}, lowest at ({x:.3g}, {y:.3g})"
        lines.append(Text(text, "yellow" if extent.startswith("flat") else "dim"))
    return lines


def distances_note(surface: Surface) -> list[str]:
    """Which points do not lie in the plane, where the picture shows their projection."""
    off = max((place.position.off for place in surface.trail), default=0.0)
    trail = (
        [f"the series lies up to {off:.3g} off the plane: it is drawn where it projects"]
        if surface.is_off(off)
        else []
    )
    return trail + [
        f"{one_line(place.name)} lies {place.position.off:.3g} off the plane (W1 and W2 are"
        f" {surface.corners[1].x:.3g} apart): it is drawn where it projects, with its own loss"
        for place in surface.places
        if place.kind == "mark" and surface.is_off(place.position.off)
    ]
