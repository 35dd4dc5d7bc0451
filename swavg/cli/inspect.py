"""``swavg inspect``."""

from __future__ import annotations

import click

from swavg.cli.options import SectionedCommand
from swavg.cli.printing import print_json
from swavg.cli.values import KEY


@click.command(cls=SectionedCommand)
@click.argument("checkpoint", metavar="CKPT", type=click.Path())
@click.option("--stats", is_flag=True, help="Read the values: mean, deviation, range, NaN, Inf.")
@click.option(
    "--tree/--table", default=False, help="By module, with sums; or a line per tensor (default)."
)
@click.option("--all", "everything", is_flag=True, help="Show modules that are alike one by one.")
@click.option("--include", multiple=True, metavar="GLOB", help="Look at these tensors only.")
@KEY
@click.option("--card", is_flag=True, help="Print a page on an average, in Markdown, instead.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(
    checkpoint: str,
    stats: bool,
    tree: bool,
    everything: bool,
    include: tuple[str, ...],
    key: str | None,
    card: bool,
    as_json: bool,
) -> None:
    """Show what a checkpoint holds.

    CKPT is a checkpoint of any kind that average takes. Only headers are read, and nothing in it is
    ever run; --stats streams the values in constant memory.

    \b
    swavg inspect model.safetensors          a line per tensor, then the sums
    swavg inspect last.ckpt --tree           by module, and what else it holds
    swavg inspect model --stats --include '*.bias'
    swavg inspect avg.safetensors --card > avg.md

    The standard deviation is the population's; NaN and Inf are counted and left out of the other
    figures; complex values count by their magnitude. Tied tensors are summed once.
    """
    from swavg import analysis
    from swavg.console.inspection import show_inspection
    from swavg.console.progress import progress_bar

    with progress_bar("reading", "bytes", shown=stats) as on_progress:
        found = analysis.inspect(
            checkpoint, key=key, stats=stats, include=include, on_progress=on_progress
        )
    if card:
        from swavg.cli.card import card_of
        from swavg.engine.nearby import of_wholes

        click.echo(card_of(checkpoint, of_wholes(checkpoint, found.recipe or {})), nl=False)
    elif as_json:
        print_json("inspection", found.to_json())
    else:
        show_inspection(found, tree=tree, everything=everything)
