"""``swavg landscape``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from swavg.cli.options import SectionedCommand
from swavg.cli.scoring import ScoringOptions, scoring_options
from swavg.cli.survey import SurveyOptions, measured, nonfinite_notes, survey_options

if TYPE_CHECKING:
    from swavg.evaluation.landscape.planar import Layout
    from swavg.evaluation.landscape.surface import Surface
    from swavg.evaluation.outputs import Outputs
    from swavg.evaluation.survey import Survey


@click.command(cls=SectionedCommand)
@click.argument("w1", metavar="W1", type=click.Path())
@click.argument("w2", metavar="W2", type=click.Path())
@click.argument("w3", metavar="W3", type=click.Path())
@click.option("--mark", multiple=True, metavar="AVG", type=click.Path(),
              help="Draw this checkpoint, too, with its own loss. Can be repeated.")  # fmt: skip
@click.option("--series", multiple=True, metavar="RUN|CKPT", type=click.Path(),
              help="Draw the path of these checkpoints, projected. Can be repeated.")  # fmt: skip
@click.option("--grid", default="21", show_default=True, metavar="N|NxM", help="Points per axis.")
@click.option("--margin", type=float, default=0.2, show_default=True, metavar="SHARE",
              help="Room around the points, as a share of their extent.")  # fmt: skip
@scoring_options
@survey_options
def landscape(
    w1: str,
    w2: str,
    w3: str,
    mark: tuple[str, ...],
    series: tuple[str, ...],
    grid: str,
    margin: float,
    scoring: ScoringOptions,
    options: SurveyOptions,
) -> int:
    """The loss on the plane through three checkpoints, as a figure and a csv.

    The axes are distances between weights. The average of the three is marked by a star. Weights
    are interpolated tensor by tensor; what --model and --data name is the user's code, and is run;
    it is found from the current folder, too. An interrupted run goes on when it is called again.

    \b
    swavg landscape a.pt b.pt c.pt --model train:build_model --data train:test
    swavg landscape a.pt b.pt c.pt --mark swa.pt --series run/ \\
        --model train.py:Net --data train.py:test_batches \\
        --bn-data train.py:train_batches --metric both -o plane.svg
    """
    from swavg.evaluation.landscape.grid import parse_shape
    from swavg.evaluation.landscape.planar import lay_out, survey_of
    from swavg.series import discover

    shape = parse_shape(grid)
    outputs = options.outputs("landscape")
    trail = discover(series).paths if series else ()
    corners, marks = scoring.open([w1, w2, w3]), scoring.open(mark)
    passing = scoring.open(trail)
    model = scoring.build()
    with options.measuring() as on_read:
        layout = lay_out(
            corners,
            marks,
            passing,
            scoring.weights(model, [*corners, *marks, *passing]),
            shape=shape,
            margin=margin,
            on_read=on_read,
        )
    labels = _labels(layout, [w1, w2, w3], options)
    survey = survey_of(layout, scoring.cache_key(model))
    outputs.check(survey, [*corners, *marks, *passing])
    if options.dry_run:
        report = _as_json(survey, layout, outputs)
        options.show_plan("landscape", report, _facts(survey, layout, outputs))
        return 0
    scorer, told = scoring.scorer(model, corners, marks), scoring.notes(model)
    with measured(survey, outputs, scorer, told, quiet=options.quiet) as (table, values):
        from swavg.evaluation.landscape.planar import surface_of

        surface = surface_of(layout, values, labels)
        outputs.publish(survey, table, partial(_drawn, surface, options, scoring.data))
    _report(surface, options, outputs, _as_json(survey, layout, outputs, surface, options))
    return 0


def _labels(layout: Layout, corners: Sequence[str], options: SurveyOptions) -> list[str]:
    names = ["W1", "W2", "W3", layout.places[3].name]
    if options.labels == "names":
        from swavg.engine.recipe import short_names

        names[:3] = short_names(corners)
    names += [place.name for place in layout.places if place.kind == "mark"]
    return options.label(len(names), names)


def _drawn(surface: Surface, options: SurveyOptions, data: str, kind: str) -> bytes:
    from swavg.evaluation.landscape.drawing import encoded
    from swavg.evaluation.landscape.figure import draw

    return encoded(draw(surface, options.metrics, subject=options.subject, data=data), kind)


def _facts(survey: Survey, layout: Layout, outputs: Outputs) -> list[tuple[str, str]]:
    """What would be computed."""
    plane, grid = layout.plane, layout.grid
    return [
        ("plane", f"W2 {plane.side:.4g} from W1; W3 {plane.height:.4g} beside their line"),
        ("grid", f"{len(grid.xs)} x {len(grid.ys)} points"),
        ("from", f"({grid.xs[0]:.4g}, {grid.ys[0]:.4g})"),
        ("to", f"({grid.xs[-1]:.4g}, {grid.ys[-1]:.4g})"),
        ("evaluates", f"{survey.evaluations} points"),
        ("writes", ", ".join(outputs.paths)),
    ]


def _as_json(
    survey: Survey,
    layout: Layout,
    outputs: Outputs,
    surface: Surface | None = None,
    options: SurveyOptions | None = None,
) -> dict[str, Any]:
    """What was found, or without a surface what would be computed; notes are to come."""
    plane, grid = layout.plane, layout.grid
    lowest = None
    if surface is not None and options is not None:
        metric = options.metrics[0]
        x, y, value = surface.lowest(metric)
        lowest = {metric: value, "x": x, "y": y}
    return {
        "dry_run": surface is None,
        "evaluations": survey.evaluations,
        "output": outputs.figure,
        "csv": outputs.csv,
        "plane": {"side": plane.side, "foot": plane.foot, "height": plane.height},
        "grid": {"x": list(grid.xs), "y": list(grid.ys)},
        "lowest": lowest,
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
            for place in (layout if surface is None else surface).places
        ],
        "notes": [],
    }


def _report(
    surface: Surface, options: SurveyOptions, outputs: Outputs, report: Mapping[str, object]
) -> None:
    from swavg.console import surface as console

    notes = nonfinite_notes(
        {metric: list(surface.values(metric).ravel()) for metric in options.metrics},
        "points of the grid", "hatched in the figure, '?' on the terminal",
    )  # fmt: skip
    if not options.quiet:
        if options.shows_chart():
            for metric in options.metrics:
                console.surface_picture(surface, metric)
        console.surface_report(surface, options.metrics)
        notes += console.distances_note(surface)
    options.finish("landscape", outputs, {**report, "notes": notes}, notes)
