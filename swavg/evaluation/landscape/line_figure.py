"""The figure of a line: loss above, error rate below it, and the straight line between the ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from swavg.evaluation.landscape.drawing import caption, empty_figure, fitted, legend, styled
from swavg.evaluation.landscape.line import Line, extent, verdict
from swavg.evaluation.survey import Metric, axis_title, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _PALE, _RED = "#1f4e8c", "#7f7f7f", "#d62728"
# Inches: a figure, each of its panels, and what stands above and below them.
_WIDTH, _HEIGHT, _AROUND = 4.6, 1.8, 1.0
# Characters of the names above the frame: of one, and of all in one row; inches of slanting ones.
_NAME, _ROW, _SLANTING = 20, 48, 0.5
_MOST_NAMES = 16


def draw(
    line: Line,
    metrics: Sequence[Metric],
    *,
    labels: Sequence[str] = (),
    subject: str | None = None,
    data: str | None = None,
) -> Figure:
    """A figure with a panel per metric, one above the other; ``subject`` and ``data`` as those of
    a plane.

    Raises MissingDependencyError without matplotlib.
    """
    with styled():
        figure = empty_figure(_WIDTH, _HEIGHT)
        panels = figure.subplots(len(metrics), 1, sharex=True, squeeze=False)[:, 0].tolist()
        for axes, metric in zip(panels, metrics, strict=True):
            _panel(axes, line, metric, subject)
        panels[-1].set_xlabel("along the line (distance in weight space)")
        names = [fitted(name, _NAME) for name in labels or line.route.names]
        above = _names(panels[0], line, names)
        title = " and ".join(metrics) if subject is None else f"{subject} {' and '.join(metrics)}"
        caption(panels[0], (title, line.values[0].examples, data), verdict(line).text)
        around = _AROUND + above + legend(figure, panels)
        figure.set_size_inches(_WIDTH, len(metrics) * _HEIGHT + around)
    return figure


def _panel(axes: Axes, line: Line, metric: Metric, subject: str | None) -> None:
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
    axes.plot(
        knots, ends, "--", color=_PALE, linewidth=0.9, zorder=2, gid="straight",
        label="straight line between them",
    )  # fmt: skip
    # Above the frame the curve is cut, and what is no number counts as there.
    shown = np.clip(np.where(np.isfinite(values), values, np.inf), None, high + (high - low))
    axes.plot(
        distances, shown, "-", color=_INK, linewidth=1.3, marker="o", markersize=2.4,
        markeredgewidth=0, zorder=3, gid=metric,
    )  # fmt: skip
    axes.plot(
        knots, ends, linestyle="none", marker="o", markersize=6, markerfacecolor=_RED,
        markeredgecolor="black", markeredgewidth=0.8, zorder=5, label="checkpoints",
    )  # fmt: skip
    mean = line.mean.of(metric) * factor
    if len(knots) == 2:
        axes.plot(
            [(knots[0] + knots[1]) / 2], [min(mean, high) if mean == mean else high], "*",
            markersize=11, markerfacecolor="white", markeredgecolor="black", markeredgewidth=0.8,
            zorder=6, gid="mean", linestyle="none", clip_on=False, label="their mean",
        )  # fmt: skip
    elif np.isfinite(mean):
        # The mean of more than two lies beside the line.
        axes.axhline(
            mean, color=_INK, linestyle=":", linewidth=1.1, zorder=2, gid="mean",
            label="mean of all, beside the line",
        )  # fmt: skip
    _barrier(axes, line, metric, high)
    axes.set_ylim(low, high)
    rim = 0.015 * (distances[-1] - distances[0])
    axes.set_xlim(distances[0] - rim, distances[-1] + rim)
    axes.set_ylabel(axis_title(metric, subject))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _barrier(axes: Axes, line: Line, metric: Metric, top: float) -> None:
    """The highest barrier, from the straight line up; its height is in the legend."""
    worst = max(line.barriers(metric), key=lambda barrier: barrier.height)
    factor, unit = scale(metric), " points of error" if metric == "error" else " of loss"
    part = worst.t - worst.index
    foot = (1 - part) * line.at(worst.index, metric) + part * line.at(worst.index + 1, metric)
    distance = line.route.distance(worst.t)
    axes.plot(
        [distance, distance], [foot * factor, min(top, (foot + worst.height) * factor)], "-",
        color=_RED, linewidth=1.6, solid_capstyle="butt", zorder=4, gid="barrier",
        label=f"highest barrier: {worst.height * factor:.3g}{unit}" if worst.height else "",
    )  # fmt: skip


def _names(axes: Axes, line: Line, names: Sequence[str]) -> float:
    """The checkpoints' names above the frame, slanting where they need it; of many, some. The
    height that slanting takes, in inches."""
    every = math.ceil(len(names) / _MOST_NAMES)
    top = axes.secondary_xaxis("top")
    top.spines["top"].set_visible(False)
    shown = range(0, len(names), every)
    slant = sum(len(names[i]) + 2 for i in shown) > _ROW
    top.set_xticks(
        [line.route.distance(float(i)) for i in shown], labels=[names[i] for i in shown],
        rotation=30 if slant else 0, ha="left" if slant else "center",
    )  # fmt: skip
    top.tick_params(length=0, pad=2)
    return _SLANTING * slant
