"""The survey of a plane: its points, and the surface that they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from swavg.engine.recipe import short_names
from swavg.errors import RequestError
from swavg.evaluation.landscape.grid import Grid, make_grid
from swavg.evaluation.landscape.plane import Plane, plane_of
from swavg.evaluation.landscape.products import Names, OnRead, offset_products
from swavg.evaluation.landscape.surface import Place, Surface
from swavg.evaluation.survey import (
    VALUES,
    Point,
    Survey,
    Value,
    cache_key,
    number_text,
)
from swavg.formats.checkpoint import Checkpoint
from swavg.short_repr import one_line

COLUMNS = ("kind", "name", "x", "y", "off", *VALUES)


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
    places.append(Place("average", "average", plane.centroid))
    places += [
        Place("mark" if index < len(marks) else "trail", name, position)
        for index, (name, position) in enumerate(zip(shown[3:], others, strict=True))
    ]
    grid = make_grid([place.position for place in places], shape, margin)
    return Layout(plane, grid, tuple(places), tuple(corners), tuple(marks))


def survey_of(layout: Layout, scores: Mapping[str, object]) -> Survey:
    """The places first, then the grid row by row. ``scores`` says what scores depend on."""
    everything = (*layout.corners, *layout.marks)
    shown = map(one_line, short_names([each.path for each in everything]))
    plane = layout.plane
    key = cache_key(
        "landscape",
        [*zip(shown, everything, strict=True)],
        {
            "plane": [plane.side, plane.foot, plane.height],
            "grid": [len(layout.grid.xs), len(layout.grid.ys)],
            **scores,
        },
    )
    # Of the corners and their average, which come first.
    sums = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1 / 3, 1 / 3, 1 / 3)]
    points = []
    for index, place in enumerate(layout.places):
        at = place.position
        cells = (place.kind, place.name, *map(number_text, (at.x, at.y, at.off)))
        if index < len(sums):
            points.append(Point(cells, sums[index]))
        else:
            own = index - len(sums) if place.kind == "mark" else None
            points.append(Point(cells, own=own))
    points += [
        Point(("grid", "", number_text(x), number_text(y), ""), plane.coefficients(x, y))
        for x, y in layout.grid
    ]
    return Survey(key, COLUMNS, tuple(points))


def surface_of(layout: Layout, values: Sequence[Value], labels: Sequence[str] = ()) -> Surface:
    """What was found, by grid and place; ``labels`` name the places that are no trail, in order."""
    named = len(layout.places)
    places = [
        replace(place, loss=value.loss, error=value.error)
        for place, value in zip(layout.places, values[:named], strict=True)
    ]
    for index, label in enumerate(labels):
        places[index] = replace(places[index], name=label)
    shape = len(layout.grid.ys), len(layout.grid.xs)
    found = values[named:]
    loss = np.array([each.of("loss") for each in found]).reshape(shape)
    error = None
    if all(each.error is not None for each in found):
        error = np.array([each.of("error") for each in found]).reshape(shape)
    return Surface(layout.grid, loss, error, tuple(places), found[0].examples)
