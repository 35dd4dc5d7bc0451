"""``swavg sweep``."""

from __future__ import annotations

import click

from swavg.cli.averaging import FOLDER, Run, averaging_command
from swavg.cli.executing import execute_and_report
from swavg.cli.folders import outputs_in
from swavg.cli.ranking import evaluating_outputs
from swavg.cli.scoring import (
    MetricOptions,
    OutputScoring,
    output_metric_options,
    output_scoring_options,
)
from swavg.cli.selection import Selection, selected, selection_options
from swavg.cli.values import NULL, read_paths
from swavg.planning.policy import Policy


@averaging_command()
@click.argument("checkpoints", nargs=-1, required=True, metavar="SERIES...", type=click.Path())
@FOLDER
@click.option(
    "-r",
    "--recipe",
    "recipe_texts",
    multiple=True,
    required=True,
    metavar="RECIPE",
    help="What to make, such as uniform:last=5. uniform:best=3,metric=val_loss,"
    " ema:half-life=2000steps, ema:decay=0.9,last=10; repeat it for each output.",
)
@NULL
@selection_options
@output_scoring_options
@output_metric_options
def sweep(
    checkpoints: tuple[str, ...],
    folder: str | None,
    recipe_texts: tuple[str, ...],
    null: bool,
    selection: Selection,
    scoring: OutputScoring,
    deciding: MetricOptions,
    policy: Policy,
    run: Run,
) -> None:
    """Many averages of a series from one read of its checkpoints.

    The outputs are named after their recipes. With --model and --data they are evaluated at the
    end, as by swavg eval, which says which is best.

    \b
    swavg sweep run/ -r uniform:last=5 -r ema:half-life=2000steps -d averages
    swavg sweep run/ -r uniform:last=3 -r ema:decay=0.9 -d averages \\
        --model train.py:Net --data train.py:test
    """
    if folder is None:
        raise click.UsageError("Give a folder for the outputs: -d OUTDIR.")
    facts_of = evaluating_outputs(folder, scoring, deciding, policy, run)
    from swavg import methods

    specs = [methods.sweep_spec(text) for text in recipe_texts]
    series = selected(
        read_paths(checkpoints, null=null),
        selection,
        in_order=any(spec.ema is not None and not spec.selects for spec in specs),
        steps=any(spec.counts_steps for spec in specs),
        choosing=any(spec.selects for spec in specs),
    )
    places = outputs_in(folder, [spec.name for spec in specs], series.paths[0], policy)
    request = methods.sweep(series, specs, policy=policy)
    execute_and_report(request, places, run, series.notes, folder=folder, facts_of=facts_of)
