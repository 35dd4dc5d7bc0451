"""The figure of a plane: filled contours, three checkpoints, their average, marks and a path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from swavg.evaluation.landscape.drawing import empty_figure, styled
from swavg.evaluation.landscape.labels import along, place_labels
from swavg.evaluation.landscape.smooth import panel_levels, smoothed
from swavg.evaluation.landscape.surface import Place, Surface
from swavg.evaluation.survey import Metric, axis_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Low is dark: markers with white outlines stand out in the valley, and on light ground their
# black edges do. The map is even in lightness, so that it reads in grey.
_COLOURS = "viridis"
# Inches: the frame, what stands around it (cut to what is there when the file is written).
_HEIGHT, _WIDEST, _NARROWEST, _LOWEST = 3.0, 4.4, 1.8, 1.3
_LEFT, _BELOW, _GAP, _BAR = 0.6, 0.5, 0.1, 0.14
_BESIDE = 1.55
# Points.
_NAME_SIZE = 8.5

_MARKERS: dict[str, dict[str, Any]] = {
    "corner": {"marker": "o", "markersize": 6.5, "markerfacecolor": "#d62728"},
    "average": {"marker": "*", "markersize": 12.0, "markerfacecolor": "#ffffff"},
    "mark": {"marker": "D", "markersize": 5.5, "markerfacecolor": "#ff9d2e"},
}


def draw(surface: Surface, metrics: Sequence[Metric], *, subject: str | None = None) -> Figure:
    """A figure with a panel per metric. ``subject`` stands before the value at the colour bar
    (``test`` loss). Raises MissingDependencyError without matplotlib, NumericsError."""
    xs, ys = surface.grid.xs, surface.grid.ys
    wide = (xs[-1] - xs[0]) / (ys[-1] - ys[0])
    width = min(_WIDEST, max(_NARROWEST, _HEIGHT * wide))
    height = min(_HEIGHT, max(_LOWEST, width / wide))
    whole = len(metrics) * (width + _BESIDE), height + _BELOW
    with styled():
        figure = empty_figure(*whole)
        for index, metric in enumerate(metrics):
            left = index * (width + _BESIDE) + _LEFT

            def inches(x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
                return x / whole[0], y / whole[1], w / whole[0], h / whole[1]

            axes = figure.add_axes(inches(left, _BELOW, width, height))
            bar = figure.add_axes(inches(left + width + _GAP, _BELOW, _BAR, height))
            _panel(figure, axes, bar, surface, metric, subject)
            # Equal axes may be narrower than their room.
            axes.apply_aspect()
            right = axes.get_position().x1 * whole[0]
            bar.set_position(inches(right + _GAP, _BELOW, _BAR, height))
            _name(figure, axes, surface)
    return figure


def _panel(
    figure: Figure,
    axes: Axes,
    bar_axes: Axes,
    surface: Surface,
    metric: Metric,
    subject: str | None,
) -> None:
    import matplotlib
    from matplotlib.colors import BoundaryNorm
    from matplotlib.ticker import MaxNLocator, NullLocator

    levels = panel_levels(surface, metric)
    edges = list(levels.edges)
    xs, ys, shown = smoothed(surface, metric, levels)
    extend: Literal["max", "neither"] = "max" if levels.open_above else "neither"
    colours = matplotlib.colormaps[_COLOURS].resampled(levels.bands)
    norm = BoundaryNorm(edges, levels.bands, extend=extend)
    filled = axes.contourf(xs, ys, shown, edges, cmap=colours, norm=norm, extend=extend)
    # Renderers leave hairlines between neighbouring polygons.
    filled.set_edgecolor("face")
    filled.set_linewidth(0.2)
    axes.contour(xs, ys, shown, edges[1:], colors="white", linewidths=0.4, alpha=0.55)
    _hatch(axes, surface, metric)
    axes.set_aspect("equal")
    axes.set_xlabel("distance in weight space")
    axes.set_ylabel("distance in weight space")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    bar = figure.colorbar(
        filled, cax=bar_axes, spacing="uniform", extend=extend, extendfrac="auto", extendrect=True
    )
    bar.set_label(axis_title(metric, subject))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.set_ticks(edges, labels=levels.texts)
    bar.ax.tick_params(length=2.5)
    bar.outline.set_linewidth(0.7)
    _points(axes, surface)


def _hatch(axes: Axes, surface: Surface, metric: Metric) -> None:
    """Cover the cells at whose corners there is no finite value: nothing is known of them."""
    from matplotlib.patches import Rectangle

    xs, ys = surface.grid.xs, surface.grid.ys
    for row, column in zip(*surface.unknown(metric).nonzero(), strict=True):
        width, height = xs[column + 1] - xs[column], ys[row + 1] - ys[row]
        axes.add_patch(
            Rectangle(
                (xs[column], ys[row]), width, height, facecolor="#d9d9d9", edgecolor="#8c8c8c",
                hatch="//////", linewidth=0, zorder=3, gid="unknown",
            )
        )  # fmt: skip


def _points(axes: Axes, surface: Surface) -> None:
    from matplotlib.patheffects import Stroke, withStroke

    trail = [place.position for place in surface.trail]
    if trail:
        line = axes.plot(
            [p.x for p in trail], [p.y for p in trail], "-", color="black", linewidth=0.7,
            marker="o", markersize=2.2, markeredgewidth=0, zorder=4, gid="trail",
        )[0]  # fmt: skip
        line.set_path_effects([withStroke(linewidth=1.7, foreground="white", alpha=0.8)])
    for place in surface.named:
        mark = axes.plot(
            [place.position.x], [place.position.y], linestyle="none", markeredgecolor="black",
            markeredgewidth=0.8, zorder=6.5 if place.kind == "corner" else 6, clip_on=False,
            gid=place.name, **_MARKERS[place.kind],
        )[0]  # fmt: skip
        mark.set_path_effects(
            [Stroke(linewidth=2.4, foreground="white"), Stroke(linewidth=0.8, foreground="black")]
        )
    xs, ys = surface.grid.xs, surface.grid.ys
    axes.set_xlim(xs[0], xs[-1])
    axes.set_ylim(ys[0], ys[-1])


def _name(figure: Figure, axes: Axes, surface: Surface) -> None:
    """Names beside the points, on white rims. The rims are drawn apart, so that text stays text."""
    from matplotlib.patheffects import Stroke

    dot = figure.dpi / 72
    sizes = []
    for place in surface.named:
        measured = axes.annotate(_mathematical(place), (0, 0), fontsize=_NAME_SIZE)
        box = measured.get_window_extent()
        sizes.append((box.width, box.height))
        measured.remove()

    def dots(places: Sequence[Place]) -> list[tuple[float, float]]:
        points = [(place.position.x, place.position.y) for place in places]
        return [(float(x), float(y)) for x, y in axes.transData.transform(points)] if points else []

    frame = axes.get_window_extent()
    rim = 3 * dot
    corners = place_labels(
        dots(surface.named),
        sizes,
        (frame.x0 + rim, frame.y0 + rim, frame.x1 - rim, frame.y1 - rim),
        along(dots(surface.trail), 4 * dot),
        gap=6.5 * dot,
    )
    white = Stroke(linewidth=2.2, foreground="white")
    for place, corner, at in zip(surface.named, corners, dots(surface.named), strict=True):
        for order, effects in ((7, [white]), (8, None)):
            # Relative to the point, in points: it holds in every format and resolution.
            axes.annotate(
                _mathematical(place), (place.position.x, place.position.y),
                ((corner[0] - at[0]) / dot, (corner[1] - at[1]) / dot), xycoords="data",
                textcoords="offset points", fontsize=_NAME_SIZE, color="black", zorder=order,
                annotation_clip=False, path_effects=effects, ha="left", va="bottom",
            )  # fmt: skip


def _mathematical(place: Place) -> str:
    """``W1`` as it stands in papers; other names as they are, their dollars too."""
    name = place.name
    if place.kind == "corner" and len(name) == 2 and name[0] == "W" and name[1].isdigit():
        return f"$W_{name[1]}$"
    return name.replace("$", r"\$")
