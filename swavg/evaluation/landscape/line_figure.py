"""The figure of a line: loss above, error rate below it, and the straight line between the ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from swavg.evaluation.landscape.drawing import empty_figure, styled
from swavg.evaluation.landscape.line import Line, extent
from swavg.evaluation.survey import Metric, axis_title, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _PALE, _RED = "#1f4e8c", "#7f7f7f", "#d62728"
# Inches: a frame, what stands around it (cut to what is there when the file is written).
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BELOW, _ABOVE, _GAP = 3.6, 1.75, 0.75, 0.3, 0.5, 0.35, 0.16


def draw(
    line: Line,
    metrics: Sequence[Metric],
    *,
    labels: Sequence[str] = (),
    subject: str | None = None,
) -> Figure:
    """A figure with a panel per metric, one above the other.

    Raises MissingDependencyError without matplotlib.
    """
    panels = len(metrics)
    whole = (
        _LEFT + _WIDTH + _RIGHT,
        _BELOW + panels * _HEIGHT + (panels - 1) * _GAP + _ABOVE,
    )
    with styled():
        figure = empty_figure(*whole)
        for index, metric in enumerate(metrics):
            below = _BELOW + (panels - 1 - index) * (_HEIGHT + _GAP)
            axes = figure.add_axes(
                (_LEFT / whole[0], below / whole[1], _WIDTH / whole[0], _HEIGHT / whole[1])
            )
            _panel(axes, line, metric, subject, last=index == panels - 1)
            if index == 0:
                _knots(axes, line, tuple(labels) or line.route.names)
    return figure


def _panel(axes: Axes, line: Line, metric: Metric, subject: str | None, *, last: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    factor = scale(metric)
    distances = np.array([line.route.distance(t) for t in line.route.ts])
    values = np.array(line.series(metric)) * factor
    knots = [line.route.distance(float(i)) for i in range(len(line.route.names))]
    ends = np.array([line.at(i, metric) for i in range(len(knots))]) * factor
    low, high = (bound * factor for bound in extent(line, metric))
    rim = 0.07 * (high - low)
    low, high = low - rim, high + rim
    for knot in knots:
        axes.axvline(knot, color="#d9d9d9", linewidth=0.7, zorder=1)
    axes.plot(knots, ends, "--", color=_PALE, linewidth=0.9, zorder=2, gid="straight")
    # Above the frame the curve is cut, and what is no number counts as there.
    shown = np.clip(np.where(np.isfinite(values), values, np.inf), None, high + (high - low))
    axes.plot(
        distances, shown, "-", color=_INK, linewidth=1.3, marker="o", markersize=2.4,
        markeredgewidth=0, zorder=3, gid=metric,
    )  # fmt: skip
    axes.plot(
        knots, ends, linestyle="none", marker="o", markersize=6, markerfacecolor=_RED,
        markeredgecolor="black", markeredgewidth=0.8, zorder=5,
    )  # fmt: skip
    mean = line.mean.of(metric) * factor
    if len(knots) == 2:
        axes.plot(
            [(knots[0] + knots[1]) / 2], [min(mean, high) if mean == mean else high], "*",
            markersize=11, markerfacecolor="white", markeredgecolor="black", markeredgewidth=0.8,
            zorder=6, gid="mean",
        )  # fmt: skip
    elif np.isfinite(mean):
        # The mean of more than two lies beside the line.
        axes.axhline(mean, color=_INK, linestyle=":", linewidth=0.9, zorder=2, gid="mean")
        axes.annotate(
            "mean\nof all", (1.0, mean), xycoords=("axes fraction", "data"), xytext=(4, 0),
            textcoords="offset points", ha="left", va="center", fontsize=7.5, color=_INK,
            linespacing=0.95,
        )  # fmt: skip
    axes.set_ylim(low, high)
    rim = 0.015 * (distances[-1] - distances[0])
    axes.set_xlim(distances[0] - rim, distances[-1] + rim)
    axes.set_ylabel(axis_title(metric, subject))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if last:
        axes.set_xlabel("distance in weight space")
    else:
        axes.tick_params(labelbottom=False)


def _knots(axes: Axes, line: Line, names: Sequence[str]) -> None:
    """The checkpoints' names above the frame, with the mean's between two; those that would run
    into their neighbour are left out."""
    knots = [(line.route.distance(float(i)), name) for i, name in enumerate(names)]
    if len(names) == 2:
        knots.append((line.route.distance(0.5), "mean"))
    spans: list[tuple[float, float]] = []
    for distance, name in knots:
        text = axes.annotate(
            name.replace("$", r"\$"), (distance, 1.0), xycoords=("data", "axes fraction"),
            xytext=(0, 4), textcoords="offset points", ha="center", va="bottom", fontsize=8,
        )  # fmt: skip
        box = text.get_window_extent()
        if any(box.x0 < right and left < box.x1 for left, right in spans):
            text.remove()
        else:
            spans.append((box.x0 - 4, box.x1 + 4))
