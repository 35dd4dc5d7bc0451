"""``swavg path``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from swavg.cli.options import SectionedCommand
from swavg.cli.scoring import ScoringOptions, scoring_options
from swavg.cli.survey import SurveyOptions, measured, nonfinite_notes, survey_options
from swavg.cli.values import read_paths

if TYPE_CHECKING:
    from swavg.evaluation.landscape.line import Line
    from swavg.evaluation.landscape.route import Route
    from swavg.evaluation.outputs import Outputs
    from swavg.evaluation.survey import Survey


@click.command(cls=SectionedCommand)
@click.argument("checkpoints", nargs=-1, required=True, metavar="A B [C...]", type=click.Path())
@click.option("--points", type=click.IntRange(min=2), default=25, show_default=True, metavar="N",
              help="Points along the line.")  # fmt: skip
@click.option("--from", "start", type=float, default=-0.25, show_default=True, metavar="T",
              help="Where it begins; A lies at 0.")  # fmt: skip
@click.option("--to", "end", type=float, default=1.25, show_default=True, metavar="T",
              help="Where it ends; the last checkpoint lies at 1.")  # fmt: skip
@scoring_options
@survey_options
def path(
    checkpoints: tuple[str, ...],
    points: int,
    start: float,
    end: float,
    scoring: ScoringOptions,
    options: SurveyOptions,
) -> int:
    """The loss along the straight line between two checkpoints: can they be averaged?

    Says how high the barrier between them is, above the straight line between their losses, and
    what their mean has. Of more than two, the line goes from each to the next. What --model and
    --data name is the user's code, and is run; it is found from the current folder, too. An
    interrupted run goes on when it is called again.

    \b
    swavg path a.pt b.pt --model train:build_model --data train:test_loader
    swavg path a.pt b.pt --model train.py:Net --data train.py:test \\
        --metric both -o line.pdf
    """
    from swavg.evaluation.landscape import route as routes
    from swavg.evaluation.landscape.line import line_of

    paths = read_paths(checkpoints, null=False)
    outputs = options.outputs("path")
    opened = scoring.open(paths)
    model = scoring.build()
    with options.measuring() as on_read:
        route = routes.route(
            opened,
            scoring.weights(model, opened),
            points=points,
            start=start,
            end=end,
            on_read=on_read,
        )
    labels = options.label(len(paths), route.names)
    survey = routes.survey_of(route, opened, scoring.cache_key(model))
    outputs.check(survey, opened)
    if options.dry_run:
        report = _as_json(survey, route, outputs)
        options.show_plan("path", report, _facts(survey, route, outputs))
        return 0
    scorer, told = scoring.scorer(model, opened), scoring.notes(model)
    with measured(survey, outputs, scorer, told, quiet=options.quiet) as (table, values):
        line = line_of(route, values)
        outputs.publish(survey, table, partial(_drawn, line, labels, options, scoring.data))
    _report(line, labels, options, outputs, _as_json(survey, route, outputs, line))
    return 0


def _drawn(line: Line, labels: list[str], options: SurveyOptions, data: str, kind: str) -> bytes:
    from swavg.evaluation.landscape.drawing import encoded
    from swavg.evaluation.landscape.line_figure import draw

    return encoded(
        draw(line, options.metrics, labels=labels, subject=options.subject, data=data), kind
    )


def _facts(survey: Survey, route: Route, outputs: Outputs) -> list[tuple[str, str]]:
    """What would be computed."""
    apart = ", ".join(f"{length:.4g}" for length in route.lengths)
    return [
        ("line", f"{' to '.join(route.names)}, {apart} apart"),
        ("points", f"{len(route.ts)} from t = {route.ts[0]:g} to {route.ts[-1]:g}"),
        ("evaluates", f"{survey.evaluations} points"),
        ("writes", ", ".join(outputs.paths)),
    ]


def _as_json(
    survey: Survey, route: Route, outputs: Outputs, line: Line | None = None
) -> dict[str, Any]:
    """What was found, or without a line what would be computed; notes are to come."""
    from swavg.evaluation.landscape.line import verdict

    judged = line is not None and line.judged
    found = None if line is None else verdict(line)
    return {
        "dry_run": line is None,
        "evaluations": survey.evaluations,
        "output": outputs.figure,
        "csv": outputs.csv,
        "checkpoints": [
            {
                "name": name,
                "t": float(index),
                "loss": line and line.at(index, "loss"),
                "error": line.at(index, "error") if line is not None and judged else None,
            }
            for index, name in enumerate(route.names)
        ],
        "lengths": list(route.lengths),
        "t": list(route.ts),
        "loss": line and list(line.series("loss")),
        "error": list(line.series("error")) if line is not None and judged else None,
        "mean": line and {"loss": line.mean.loss, "error": line.mean.error},
        "barriers": line
        and {
            metric: [asdict(barrier) for barrier in line.barriers(metric)]
            for metric in ("loss", *(("error",) if judged else ()))
        },
        "safe": found and found.safe,
        "verdict": found and found.text,
        "notes": [],
    }


def _report(
    line: Line,
    labels: list[str],
    options: SurveyOptions,
    outputs: Outputs,
    report: Mapping[str, object],
) -> None:
    from swavg.console import line as console

    if not options.quiet:
        if options.shows_chart():
            for metric in options.metrics:
                console.line_picture(line, metric, labels)
        console.line_report(line, labels)
    notes = nonfinite_notes(
        {metric: line.series(metric) for metric in options.metrics},
        "points of the line", "the curve leaves the frame there",
    )  # fmt: skip
    options.finish("path", outputs, {**report, "notes": notes}, notes)
