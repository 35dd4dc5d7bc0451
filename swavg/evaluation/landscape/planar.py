"""The survey of a plane: its points, and the surface that they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from swavg import __version__
from swavg.engine.recipe import short_names
from swavg.errors import RequestError
from swavg.evaluation.landscape.grid import Grid, make_grid
from swavg.evaluation.landscape.plane import Plane, Position, plane_of
from swavg.evaluation.landscape.products import Names, OnRead, offset_products
from swavg.evaluation.landscape.surface import Place, Surface
from swavg.evaluation.landscape.survey import (
    VALUES,
    GridPoint,
    Survey,
    Value,
    number_text,
    one_line,
)
from swavg.formats.checkpoint import Checkpoint

COLUMNS = ("kind", "name", "x", "y", "off", *VALUES)

AVERAGE = "average"


@dataclass(frozen=True, slots=True)
class Layout:
    """A plane with its grid, and the named places on it, of which nothing is computed yet.

    ``corners``, ``marks`` and ``trail`` are the checkpoints, in this order in ``places``, with the
    average behind the corners.
    """

    plane: Plane
    grid: Grid
    places: tuple[Place, ...]
    corners: tuple[Checkpoint, ...]
    marks: tuple[Checkpoint, ...]


def lay_out(
    corners: Sequence[Checkpoint],
    marks: Sequence[Checkpoint],
    trail: Sequence[Checkpoint],
    names: Names,
    *,
    shape: tuple[int, int],
    margin: float,
    on_read: OnRead | None = None,
) -> Layout:
    """Where everything lies. Reads all checkpoints once.

    Raises RequestError for corners that make no plane, and what :func:`offset_products` raises.
    """
    if len(corners) != 3:
        raise RequestError(
            f"a plane goes through three checkpoints; there are {len(corners)}.",
            hint="swavg path takes two and more.",
        )
    everything = [*corners, *marks, *trail]
    products = offset_products(everything, names, on_read)
    shown = [one_line(name) for name in short_names([each.path for each in everything])]
    plane, others = plane_of(products, shown)
    places = [
        Place("corner", f"W{index + 1}", position) for index, position in enumerate(plane.corners)
    ]
    places.append(Place("average", AVERAGE, plane.centroid))
    places += [
        Place("mark" if index < len(marks) else "trail", name, position)
        for index, (name, position) in enumerate(zip(shown[3:], others, strict=True))
    ]
    grid = make_grid([place.position for place in places], shape, margin)
    return Layout(plane, grid, tuple(places), tuple(corners), tuple(marks))


def survey_of(layout: Layout, cache_key: Mapping[str, object]) -> Survey:
    """The places first, then the grid row by row. ``cache_key`` says what scores depend on."""
    everything = (*layout.corners, *layout.marks)
    shown = short_names([each.path for each in everything])
    plane = layout.plane
    whole = {
        "survey": "landscape",
        "version": __version__,
        "checkpoints": [
            {"name": one_line(name), "bytes": each.size}
            for name, each in zip(shown, everything, strict=True)
        ],
        "plane": [plane.side, plane.foot, plane.height],
        "grid": [len(layout.grid.xs), len(layout.grid.ys)],
        **cache_key,
    }
    points = []
    corner = mark = 0
    for place in layout.places:
        cells = (place.kind, place.name, *_coordinates(place.position))
        if place.kind == "corner":
            alone = tuple(float(index == corner) for index in range(3))
            points.append(GridPoint(cells, alone))
            corner += 1
        elif place.kind == "average":
            points.append(GridPoint(cells, (1 / 3, 1 / 3, 1 / 3)))
        elif place.kind == "mark":
            points.append(GridPoint(cells, own=mark))
            mark += 1
        else:
            points.append(GridPoint(cells))
    points += [
        GridPoint(("grid", "", number_text(x), number_text(y), ""), plane.coefficients(x, y))
        for x, y in layout.grid
    ]
    return Survey(whole, COLUMNS, tuple(points))


def _coordinates(position: Position) -> tuple[str, str, str]:
    return tuple(number_text(float(c)) for c in (position.x, position.y, position.off))  # type: ignore[return-value]


def surface_of(layout: Layout, values: Sequence[Value], labels: Sequence[str] = ()) -> Surface:
    """What was found, by grid and place; ``labels`` name the places that are no trail, in order."""
    from dataclasses import replace

    named = len(layout.places)
    places = [
        replace(place, loss=value.loss, error=value.error)
        for place, value in zip(layout.places, values[:named], strict=True)
    ]
    for index, label in enumerate(labels):
        places[index] = replace(places[index], name=label)
    shape = len(layout.grid.ys), len(layout.grid.xs)
    found = values[named:]
    loss = np.array([np.nan if each.loss is None else each.loss for each in found])
    error = None
    if all(each.error is not None for each in found):
        error = np.array([each.error for each in found], np.float64).reshape(shape)
    return Surface(layout.grid, loss.reshape(shape), error, tuple(places))
