"""``swavg landscape``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from swavg.cli.surveying import Surveying, surveying_options

if TYPE_CHECKING:
    from swavg.landscape.outputs import Outputs
    from swavg.landscape.planar import Layout
    from swavg.landscape.surface import Surface
    from swavg.landscape.survey import Survey


@click.command()
@click.argument("w1", metavar="W1")
@click.argument("w2", metavar="W2")
@click.argument("w3", metavar="W3")
@click.option("--mark", multiple=True, metavar="AVG",
              help="Draw this checkpoint, too, with its own loss. Can be repeated.")  # fmt: skip
@click.option("--series", multiple=True, metavar="RUN|CKPT",
              help="Draw the path of these checkpoints, projected. Can be repeated.")  # fmt: skip
@click.option("--grid", default="21", show_default=True, metavar="N|NxM", help="Points per axis.")
@click.option("--margin", type=float, default=0.2, show_default=True, metavar="SHARE",
              help="Room around the points, as a share of their extent.")  # fmt: skip
@surveying_options
def landscape(
    w1: str,
    w2: str,
    w3: str,
    mark: tuple[str, ...],
    series: tuple[str, ...],
    grid: str,
    margin: float,
    surveying: Surveying,
) -> int:
    """The loss on the plane through three checkpoints, as a figure and a csv.

    The axes are distances between weights. The average of the three is marked by a star. Weights
    are interpolated tensor by tensor; what --model and --data name is the user's code, and is run;
    it is found from the current folder, too. An interrupted run goes on when it is called again.

    \b
    swavg landscape a.pt b.pt c.pt --model train:build_model --data train:test_loader
    swavg landscape a.pt b.pt c.pt --mark swa.pt --series run/ --model train.py:Net \\
        --data train.py:test_batches --bn-data train.py:train_batches --metric both -o plane.svg
    """
    from swavg.landscape import table as tables
    from swavg.landscape.grid import parse_shape
    from swavg.landscape.planar import lay_out, survey_of
    from swavg.series import discover

    shape = parse_shape(grid)
    outputs = surveying.outputs("landscape")
    trail = discover(series).paths if series else ()
    corners, marks = surveying.open([w1, w2, w3]), surveying.open(mark)
    passing = surveying.open(trail)
    model = surveying.build()
    with surveying.measuring() as on_read:
        layout = lay_out(
            corners,
            marks,
            passing,
            surveying.weights(model),
            shape=shape,
            margin=margin,
            on_read=on_read,
        )
    names = ["W1", "W2", "W3", layout.places[3].name]
    if surveying.labels == "names":
        from swavg.recipe import short_names

        names[:3] = short_names([w1, w2, w3])
    names += [place.name for place in layout.places if place.kind == "mark"]
    labels = surveying.name(len(names), names)
    survey = survey_of(layout, surveying.asked(model))
    outputs.check(survey, [*corners, *marks, *passing])
    if surveying.dry_run:
        _explain(survey, layout, outputs)
        return 0
    if not surveying.quiet:
        from swavg import console

        console.warn(surveying.notes(model))
    with tables.opened(
        outputs.csv,
        survey.asked,
        survey.columns,
        anew=surveying.restart,
        force=surveying.force,
    ) as table:
        values = surveying.run(survey, table, model, corners, marks)
        if values is None:
            return 130
        from swavg.landscape.planar import surface_of

        surface = surface_of(layout, values, labels)
        drawn = _drawn(surface, surveying, outputs)
        outputs.publish(survey, table, drawn)
    _report(surface, layout, surveying, outputs)
    return 0


def _drawn(surface: Surface, surveying: Surveying, outputs: Outputs) -> bytes | None:
    if outputs.figure is None:
        return None
    from swavg.landscape.drawing import encoded, figure_format
    from swavg.landscape.figure import draw

    figure = draw(surface, surveying.metrics, subject=surveying.subject)
    return encoded(figure, figure_format(outputs.figure))


def _explain(survey: Survey, layout: Layout, outputs: Outputs) -> None:
    from swavg import console_landscape

    plane, grid = layout.plane, layout.grid
    console_landscape.dry_run(
        [
            ("plane", f"W2 {plane.side:.4g} from W1; W3 {plane.height:.4g} beside their line"),
            ("grid", f"{len(grid.xs)} x {len(grid.ys)} points"),
            ("from", f"({grid.xs[0]:.4g}, {grid.ys[0]:.4g})"),
            ("to", f"({grid.xs[-1]:.4g}, {grid.ys[-1]:.4g})"),
            ("evaluates", f"{survey.evaluations} points"),
            ("writes", ", ".join(outputs.paths)),
        ]
    )


def _report(surface: Surface, layout: Layout, surveying: Surveying, outputs: Outputs) -> None:
    from swavg import console_landscape

    notes = surveying.unmeasured(
        {metric: list(surface.values(metric).ravel()) for metric in surveying.metrics},
        "points of the grid", "hatched in the figure, '?' on the terminal",
    )  # fmt: skip
    if not surveying.quiet:
        if surveying.drawn():
            for metric in surveying.metrics:
                console_landscape.surface_picture(surface, metric)
        console_landscape.surface_report(surface, surveying.metrics)
        notes += console_landscape.distances_note(surface)
    x, y, lowest = surface.lowest(surveying.metrics[0])
    report: dict[str, Any] = {
        "figure": outputs.figure,
        "csv": outputs.csv,
        "plane": {
            "side": layout.plane.side,
            "foot": layout.plane.foot,
            "height": layout.plane.height,
        },
        "grid": {"x": list(layout.grid.xs), "y": list(layout.grid.ys)},
        "lowest": {surveying.metrics[0]: lowest, "x": x, "y": y},
        "points": [
            {
                "kind": place.kind,
                "name": place.name,
                "x": place.position.x,
                "y": place.position.y,
                "off": place.position.off,
                "loss": place.loss,
                "error": place.error,
            }
            for place in surface.places
        ],
        "notes": notes,
    }
    surveying.finish(outputs, report, notes)
