"""``swavg window``."""

from __future__ import annotations

import click

from swavg.cli.options import SectionedCommand
from swavg.cli.running import OUTPUT, Running, running_options


@click.command(cls=SectionedCommand)
@click.argument("start")
@click.argument("end")
@OUTPUT
@click.option(
    "--counts",
    nargs=2,
    type=float,
    metavar="S E",
    help="Of how many checkpoints or steps the two are averages. [default: as recorded]",
)
@running_options
def window(
    start: str,
    end: str,
    output: str | None,
    counts: tuple[float, float] | None,
    running: Running,
) -> None:
    """The mean over the steps between two running averages.

    With running averages a_s of s steps and a_e of e, the mean over (s, e] is
    (a_e e - a_s s) / (e - s): two files instead of all between them.

    \b
    swavg window avg-800.pt avg-1000.pt --counts 800 1000 -o window.pt
    """
    where = running.where(output)
    from swavg import methods
    from swavg.cli._jobs import jobs_of

    request = methods.window(start, end, policy=running.arguments["policy"], counts=counts)
    running.do(jobs_of(request, [where], running.arguments))
