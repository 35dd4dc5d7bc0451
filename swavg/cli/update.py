"""``swavg update``."""

from __future__ import annotations

import click

from swavg.cli.options import SectionedCommand
from swavg.cli.running import OUTPUT, Running, running_options


@click.command(cls=SectionedCommand)
@click.argument("average")
@click.argument("new", nargs=-1)
@OUTPUT
@click.option("--add", multiple=True, metavar="NEW", help="Let this checkpoint into the window.")
@click.option("--drop", multiple=True, metavar="OLD", help="Let this one out of the window.")
@click.option(
    "--count",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of how many AVERAGE is the mean. [default: as recorded in it]",
)
@running_options
def update(
    average: str,
    new: tuple[str, ...],
    output: str | None,
    add: tuple[str, ...],
    drop: tuple[str, ...],
    count: int | None,
    running: Running,
) -> None:
    """Add checkpoints to a running average, or move a window on.

    AVERAGE is the mean of n checkpoints; n is read from it and written to the result, which equals
    the mean of all. It is kept in float32 unless --dtype says otherwise, so that it does not drift.

    \b
    swavg update avg.safetensors step-1100.safetensors -o avg2.safetensors
    swavg update avg.safetensors --add step-1100.pt --drop step-600.pt -o avg2.safetensors
    """
    if not new and not add and not drop:
        raise click.UsageError("Give the new checkpoints, or --add and --drop.")
    where = running.where(output)
    from swavg import methods
    from swavg.cli._jobs import jobs_of

    policy = running.arguments["policy"]
    if drop:
        request = methods.slide(average, [*new, *add], drop, policy=policy, count=count)
    else:
        request = methods.update(average, [*new, *add], policy=policy, count=count)
    running.do(jobs_of(request, [where], running.arguments))
