"""``swavg window``."""

from __future__ import annotations

import click

from swavg.cli.averaging import Run, averaging_command, output_option, output_path
from swavg.cli.executing import execute_and_report
from swavg.planning.policy import Policy


@averaging_command()
@click.argument("start", type=click.Path())
@click.argument("end", type=click.Path())
@output_option("window")
@click.option(
    "--counts",
    nargs=2,
    type=float,
    metavar="S E",
    help="Of how many steps the two are means. Or checkpoints. [default: as recorded]",
)
def window(
    start: str,
    end: str,
    output: str | None,
    counts: tuple[float, float] | None,
    policy: Policy,
    run: Run,
) -> None:
    """The mean over the steps between two running averages.

    With running averages a_s of s steps and a_e of e, the mean over (s, e] is
    (a_e e - a_s s)/(e-s): two files instead of all between them.

    \b
    swavg window avg-800.pt avg-1000.pt --counts 800 1000 -o window.pt
    """
    path = output_path(output, as_json=run.as_json, dry_run=run.dry_run)
    from swavg import methods

    request = methods.window(start, end, policy=policy, counts=counts)
    execute_and_report(request, [path], run)
