"""The figure of a plane: filled contours, three checkpoints, their average, marks and a path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from swavg.evaluation.landscape.drawing import caption, empty_figure, fitted, legend, styled
from swavg.evaluation.landscape.grid import Grid
from swavg.evaluation.landscape.levels import Levels
from swavg.evaluation.landscape.plane import Position
from swavg.evaluation.landscape.surface import Surface
from swavg.evaluation.survey import Metric, axis_title, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Low is dark: markers with white outlines stand out in the valley, and on light ground their
# black edges do. The map is even in lightness, so that it reads in grey.
_COLOURS = "viridis"
# Inches: the frame, and what stands around it.
_HEIGHT, _WIDEST, _NARROWEST, _LOWEST = 3.0, 4.4, 1.8, 1.3
_BESIDE, _BELOW = 1.5, 0.95
# Between the points of a grid, about so many triangles are drawn.
_TRIANGLES = 50_000
# Of a path so many heads of arrows are drawn at most.
_ARROWS = 12
# A share of the frame's sides.
_ROOM = 0.09
# Characters of a name in the legend.
_NAME = 34

_MARKERS: dict[str, Sequence[tuple[str, float, str]]] = {
    "corner": [("o", 6.5, "#d62728")],
    "average": [("*", 12.0, "#ffffff")],
    "mark": [
        ("D", 5.5, "#ff9d2e"), ("s", 6.0, "#59c3ff"), ("^", 7.0, "#ff8ad8"), ("v", 7.0, "#ffffff"),
    ],
}  # fmt: skip


def draw(
    surface: Surface,
    metrics: Sequence[Metric],
    *,
    subject: str | None = None,
    data: str | None = None,
) -> Figure:
    """A figure with a panel per metric. ``subject`` stands before the name of the metric (``test``
    loss), ``data`` beside it. Raises MissingDependencyError without matplotlib, NumericsError."""
    xs, ys = surface.grid.xs, surface.grid.ys
    wide = (xs[-1] - xs[0]) / (ys[-1] - ys[0])
    width = min(_WIDEST, max(_NARROWEST, _HEIGHT * wide))
    height = min(_HEIGHT, max(_LOWEST, width / wide))
    with styled():
        figure = empty_figure(width, height)
        panels = figure.subplots(1, len(metrics), squeeze=False)[0].tolist()
        for axes, metric in zip(panels, metrics, strict=True):
            _panel(axes, surface, metric, axis_title(metric, subject))
            caption(
                axes,
                (axis_title(metric, subject), surface.examples, data),
                f"{surface.range_text(metric)} on the plane",
            )
        below = _BELOW + legend(figure, panels, len(metrics))
        figure.set_size_inches(len(metrics) * (width + _BESIDE), height + below)
    return figure


def _panel(axes: Axes, surface: Surface, metric: Metric, title: str) -> None:
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm
    from matplotlib.ticker import MaxNLocator, NullLocator

    levels = surface.levels(metric)
    extend: Literal["max", "neither"] = "max" if levels.open_above else "neither"
    colours = matplotlib.colormaps[_COLOURS].resampled(levels.bands)
    norm = BoundaryNorm(levels.edges, levels.bands, extend=extend)
    _contours(axes, surface, metric, levels, cmap=colours, norm=norm, extend=extend)
    axes.set_aspect("equal")
    axes.set_xlabel("along W₂ \N{MINUS SIGN} W₁ (distance in weight space)")
    axes.set_ylabel("across W₂ \N{MINUS SIGN} W₁")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    bar = axes.figure.colorbar(
        ScalarMappable(norm, colours), cax=axes.inset_axes((1.03, 0, 0.045, 1)), extend=extend,
        spacing="uniform", extendfrac="auto", extendrect=True,
    )  # fmt: skip
    bar.set_label(f"{title}, bands widen upwards" if levels.bands > 2 else title)
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.set_ticks(levels.edges, labels=levels.texts)
    bar.ax.tick_params(length=2.5)
    bar.outline.set_linewidth(0.7)
    _path(axes, surface)
    _points(axes, surface)
    axes.set_xlim(surface.grid.xs[0], surface.grid.xs[-1])
    axes.set_ylim(surface.grid.ys[0], surface.grid.ys[-1])


def _contours(axes: Axes, surface: Surface, metric: Metric, levels: Levels, **colours: Any) -> None:
    """Bands between smooth curves through the values of the grid. What has no finite value at a
    corner is hatched: nothing is known of it.

    The curves are cubic in log(value - lowest + first band), which is round in a valley and even on
    its slopes; cubics through the values themselves would swing beside a cliff.
    """
    from matplotlib.patches import Rectangle
    from matplotlib.tri import Triangulation, UniformTriRefiner

    x, y = (each.ravel() for each in np.meshgrid(surface.grid.xs, surface.grid.ys))
    values = surface.values(metric).ravel() * scale(metric)
    low, last, first = levels.edges[0], levels.edges[-1], levels.edges[1] - levels.edges[0]
    known = np.isfinite(values)
    triangles = Triangulation(x, y)
    triangles.set_mask(~known[triangles.triangles].all(axis=1))
    if not known.all():
        unknown = Rectangle(
            (0, 0), 1, 1, transform=axes.transAxes, facecolor="#d9d9d9", edgecolor="#8c8c8c",
            hatch="//////", linewidth=0, zorder=0.5, label="not finite",
        )  # fmt: skip
        axes.add_patch(unknown)
    if triangles.mask is not None and triangles.mask.all():
        return
    # Beyond this nothing is told apart; a cliff drawn through 1e30 would bend what is before it.
    top = last + 3 * (last - low) if levels.open_above else last
    curves = np.log(np.clip(np.where(known, values, last), low, top) - low + first)
    finer = math.log(_TRIANGLES / len(triangles.triangles), 4)
    fine, curves = UniformTriRefiner(triangles).refine_field(
        curves, subdiv=round(min(max(finer, 1), 4))
    )
    # A band does not have its upper edge.
    shown = np.clip(np.exp(curves) + low - first, low, top - 1e-6 * first)
    filled = axes.tricontourf(fine, shown, levels.edges, **colours)
    # Renderers leave hairlines between neighbouring polygons.
    filled.set_edgecolor("face")
    filled.set_linewidth(0.2)
    axes.tricontour(fine, shown, levels.edges[1:], colors="white", linewidths=0.4, alpha=0.55)


def _path(axes: Axes, surface: Surface) -> None:
    """The trail as it projects, dashed where it is far from the plane, with its direction."""
    from matplotlib.patheffects import withStroke

    trail = [place.position for place in surface.trail]
    far = surface.far
    parts: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for one, other in pairwise(trail):
        # A gap separates it from the part before.
        segment = [(one.x, one.y), (other.x, other.y), (math.nan, math.nan)]
        parts[(one.off + other.off) / 2 > far] += segment
    rim = [withStroke(linewidth=1.9, foreground="white", alpha=0.85)]
    for off, points in parts.items():
        if points:
            where = f"over {far:.2g} off the plane" if off else "near the plane"
            axes.plot(
                *zip(*points, strict=True), color="black", linestyle="--" if off else "-",
                linewidth=0.8, marker="o", markersize=2.4, markeredgewidth=0, zorder=4,
                path_effects=rim, label=f"path, {where}", gid="far" if off else "near",
            )  # fmt: skip
    for one, other in list(pairwise(trail))[:: 1 + len(trail) // _ARROWS]:
        middle = (one.x + other.x) / 2, (one.y + other.y) / 2
        back = one.x + 0.499 * (other.x - one.x), one.y + 0.499 * (other.y - one.y)
        axes.annotate(
            "", middle, back, gid="arrow", zorder=4.5,
            arrowprops={"arrowstyle": "-|>", "color": "black", "linewidth": 0.8,
                        "mutation_scale": 7, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip


def _points(axes: Axes, surface: Surface) -> None:
    """The named points; the corners' names stand beside them, the others in the legend."""
    from matplotlib.patheffects import Stroke

    count = dict.fromkeys(_MARKERS, 0)
    centre = next(each.position for each in surface.places if each.kind == "average")
    for place in surface.named:
        at, number = place.position, count[place.kind]
        count[place.kind] += 1
        markers = _MARKERS[place.kind]
        marker, size, colour = markers[number % len(markers)]
        corner = f"W{'₁₂₃'[number]}" if place.kind == "corner" else ""
        name = f"{corner} {fitted(place.name, _NAME)}".strip()
        if place.name in ("", f"W{number + 1}"):
            name = ""
        if name and surface.is_off(at.off):
            name += f", {at.off:.2g} off the plane"
        axes.plot(
            [at.x], [at.y], linestyle="none", marker=marker, markersize=size,
            markerfacecolor=colour, markeredgecolor="black", markeredgewidth=0.8, clip_on=False,
            zorder=6.5 if corner else 6, gid=place.name, label=name,
            path_effects=[
                Stroke(linewidth=2.4, foreground="white"),
                Stroke(linewidth=0.8, foreground="black"),
            ],
        )  # fmt: skip
        if corner and place.name:
            # Outwards, where neither its neighbours nor the average are, if there is room.
            across, up = at.x - centre.x, at.y - centre.y
            points = (13 if _has_room(surface.grid, at) else -13) / math.hypot(across, up)
            axes.annotate(
                corner, (at.x, at.y), (points * across, points * up),
                textcoords="offset points", ha="center", va="center", zorder=7,
                bbox={"boxstyle": "round,pad=0.12", "facecolor": "white", "alpha": 0.8,
                      "linewidth": 0},
            )  # fmt: skip


def _has_room(grid: Grid, at: Position) -> bool:
    """Whether a short name fits between a point and the frame."""
    return all(
        min(place - ends[0], ends[-1] - place) > _ROOM * (ends[-1] - ends[0])
        for place, ends in ((at.x, grid.xs), (at.y, grid.ys))
    )
