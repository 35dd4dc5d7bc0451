"""``swavg update``."""

from __future__ import annotations

import click

from swavg.cli.averaging import AGAIN, Run, averaging_command, output_option, output_path
from swavg.cli.executing import execute_and_report
from swavg.cli.values import COUNT
from swavg.planning.policy import Policy


@averaging_command()
@click.argument("average", type=click.Path())
@click.argument("new", nargs=-1, type=click.Path())
@output_option("updated")
@click.option(
    "--add",
    multiple=True,
    type=click.Path(),
    metavar="NEW",
    help="Let this checkpoint into the window.",
)
@click.option(
    "--drop",
    multiple=True,
    type=click.Path(),
    metavar="OLD",
    help="Let this one out of the window.",
)
@click.option(
    "--count",
    type=COUNT,
    metavar="N",
    help="Of how many AVERAGE is the mean. [default: as recorded in it]",
)
@AGAIN
def update(
    average: str,
    new: tuple[str, ...],
    output: str | None,
    add: tuple[str, ...],
    drop: tuple[str, ...],
    count: int | None,
    again: bool,
    policy: Policy,
    run: Run,
) -> None:
    """Add checkpoints to a running average, or move a window on.

    AVERAGE is the mean of n checkpoints; n is read from it and written to the result, which equals
    the mean of all. It is kept in float32 unless --dtype says otherwise, so that it does not drift.
    A checkpoint that is in it already is refused, whatever its name.

    \b
    swavg update avg.safetensors step-1100.safetensors -o avg2.safetensors
    swavg update avg.safetensors --add step-1100.pt --drop step-600.pt \\
        -o avg2.safetensors
    """
    if not new and not add and not drop:
        raise click.UsageError("Give the new checkpoints, or --add and --drop.")
    path = output_path(output, as_json=run.as_json, dry_run=run.dry_run)
    from swavg import methods

    added = [*new, *add]
    if drop:
        request = methods.slide(average, added, drop, policy=policy, count=count, again=again)
    else:
        request = methods.update(average, added, policy=policy, count=count, again=again)
    execute_and_report(request, [path], run)
