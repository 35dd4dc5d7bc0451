"""``swavg posthoc``."""

from __future__ import annotations

import click

from swavg.cli.averaging import FOLDER, Run, averaging_command, output_option, output_path
from swavg.cli.executing import execute_and_report
from swavg.cli.folders import outputs_in
from swavg.cli.selection import Selection, selected, selection_options
from swavg.planning.policy import Policy


@averaging_command()
@click.argument("snapshots", nargs=-1, required=True, metavar="SNAPSHOT...", type=click.Path())
@output_option("posthoc")
@FOLDER
@click.option(
    "--sigma-rel",
    type=float,
    multiple=True,
    required=True,
    metavar="S",
    help="Width of the EMA to make, such as 0.1. Relative to the run; repeat it for several.",
)
@click.option(
    "--profile",
    "profiles",
    type=float,
    multiple=True,
    metavar="S",
    help="Width of the snapshots. One for all, or one each in step order."
    " [default: as recorded in them]",
)
@click.option(
    "--at-step", type=int, metavar="T", help="The EMA at this step. [default: the last snapshot's]"
)
@selection_options
def posthoc(
    snapshots: tuple[str, ...],
    output: str | None,
    folder: str | None,
    sigma_rel: tuple[float, ...],
    profiles: tuple[float, ...],
    at_step: int | None,
    selection: Selection,
    policy: Policy,
    run: Run,
) -> None:
    """EMAs of any width from snapshots of power-function EMAs, after training.

    Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models",
    section 3. Negative weights are normal.

    \b
    swavg posthoc snapshots/ --profile 0.05 --sigma-rel 0.1 -o ema.safetensors
    swavg posthoc snapshots/ --sigma-rel 0.05 --sigma-rel 0.1 -d emas
    """
    if len(sigma_rel) > 1 and folder is None:
        raise click.UsageError("Several widths need a folder for the outputs: -d OUTDIR.")
    if folder is not None and output is not None:
        raise click.UsageError("Give -o or -d, not both.")
    from swavg import methods

    series = selected(snapshots, selection, one_for_each_step=False, steps=True, choosing=True)
    if folder is None:
        path = output_path(output, as_json=run.as_json, dry_run=run.dry_run)
        places: list[str | None] = [path]
    else:
        names = [f"posthoc-{width:g}" for width in sigma_rel]
        places = list(outputs_in(folder, names, series.paths[0], policy))
    request = methods.posthoc(series, sigma_rel, policy=policy, profiles=profiles, at_step=at_step)
    chosen = {*series.paths} != {*snapshots}
    execute_and_report(request, places, run, series.notes, folder=folder, chosen=chosen)
