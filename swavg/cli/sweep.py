"""``swavg sweep``."""

from __future__ import annotations

import click

from swavg.cli.choosing import Choosing, choose, choosing_options
from swavg.cli.options import SectionedCommand, read_paths
from swavg.cli.outputs import outputs_in
from swavg.cli.running import FOLDER, Running, running_options


@click.command(cls=SectionedCommand)
@click.argument("checkpoints", nargs=-1, required=True, metavar="SERIES...")
@FOLDER
@click.option(
    "-r",
    "--recipe",
    multiple=True,
    required=True,
    metavar="RECIPE",
    help="uniform:last=5, uniform:best=3,metric=val_loss, ema:half-life=2000steps,"
    " ema:decay=0.9,last=10; repeat it for each output.",
)
@click.option("-0", "--null", is_flag=True, help="Paths on stdin are separated by NUL.")
@choosing_options
@running_options
def sweep(
    checkpoints: tuple[str, ...],
    folder: str | None,
    recipe: tuple[str, ...],
    null: bool,
    choosing: Choosing,
    running: Running,
) -> None:
    """Many averages of a series from one read of its checkpoints.

    The outputs are named after their recipes.

    \b
    swavg sweep run/ -r uniform:last=3 -r uniform:last=5 -r ema:half-life=2000steps -d averages
    """
    if folder is None:
        raise click.UsageError("Give a folder for the outputs: -d OUTDIR.")
    from swavg import methods
    from swavg.cli._jobs import jobs_of

    specs = [methods.sweep_spec(text) for text in recipe]
    series = choose(read_paths(checkpoints, null), choosing)
    names = [spec.name for spec in specs]
    places = outputs_in(folder, names, series.paths[0])
    request = methods.sweep(series, specs, policy=running.arguments["policy"])
    running.do(jobs_of(request, places, running.arguments), series.notes, folder)
