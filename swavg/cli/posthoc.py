"""``swavg posthoc``."""

from __future__ import annotations

import click

from swavg.cli.choosing import Choosing, choose, choosing_options
from swavg.cli.options import SectionedCommand
from swavg.cli.outputs import outputs_in
from swavg.cli.running import FOLDER, OUTPUT, Running, running_options


@click.command(cls=SectionedCommand)
@click.argument("snapshots", nargs=-1, required=True, metavar="SNAPSHOT...")
@OUTPUT
@FOLDER
@click.option(
    "--sigma-rel",
    type=float,
    multiple=True,
    required=True,
    metavar="S",
    help="Relative width of the EMA to make, such as 0.1; repeat it for several.",
)
@click.option(
    "--profile",
    type=float,
    multiple=True,
    metavar="S",
    help="Relative width of the snapshots: one for all, or one each in step order."
    " [default: as recorded in them]",
)
@click.option(
    "--at-step", type=int, metavar="T", help="The EMA at this step. [default: the last snapshot's]"
)
@choosing_options
@running_options
def posthoc(
    snapshots: tuple[str, ...],
    output: str | None,
    folder: str | None,
    sigma_rel: tuple[float, ...],
    profile: tuple[float, ...],
    at_step: int | None,
    choosing: Choosing,
    running: Running,
) -> None:
    """EMAs of any width from snapshots of power-function EMAs, after training.

    Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models",
    section 3. Negative weights are normal.

    \b
    swavg posthoc snapshots/ --profile 0.05 --sigma-rel 0.1 -o ema.safetensors
    swavg posthoc snapshots/ --sigma-rel 0.05 --sigma-rel 0.1 --sigma-rel 0.15 -d emas
    """
    if len(sigma_rel) > 1 and folder is None:
        raise click.UsageError("Several widths need a folder for the outputs: -d OUTDIR.")
    if folder is not None and output is not None:
        raise click.UsageError("Give -o or -d, not both.")
    from swavg import methods
    from swavg.cli._jobs import jobs_of

    series = choose(snapshots, choosing)
    if folder is None:
        places: list[str | None] = [running.where(output)]
    else:
        names = [f"posthoc-{width:g}" for width in sigma_rel]
        places = list(outputs_in(folder, names, series.paths[0]))
    policy = running.arguments["policy"]
    request = methods.posthoc(series, sigma_rel, policy=policy, profiles=profile, at_step=at_step)
    running.do(jobs_of(request, places, running.arguments), series.notes, folder)
