"""``swavg inspect``."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("checkpoint", metavar="CKPT")
@click.option("--stats", is_flag=True, help="Read the values: mean, deviation, range, NaN, Inf.")
@click.option(
    "--tree/--table", default=False, help="By module, with sums; or a line per tensor (default)."
)
@click.option("--all", "everything", is_flag=True, help="Show modules that are alike one by one.")
@click.option("--include", multiple=True, metavar="GLOB", help="Look at these tensors only.")
@click.option(
    "--key",
    metavar="PATH",
    help="Where the state dict lies in a .pt, such as model.state_dict. [default: found]",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(
    checkpoint: str,
    stats: bool,
    tree: bool,
    everything: bool,
    include: tuple[str, ...],
    key: str | None,
    as_json: bool,
) -> None:
    """Show what a checkpoint holds.

    CKPT is a safetensors or PyTorch file, or a folder as Hugging Face writes it. Only headers are
    read, and nothing in the file is ever run; --stats streams the values in constant memory.

    \b
    swavg inspect model.safetensors          a line per tensor, then the sums
    swavg inspect last.ckpt --tree           by module, and what else it holds
    swavg inspect model --stats --include '*.bias'

    The standard deviation is the population's; NaN and Inf are counted and left out of the other
    figures; complex values count by their magnitude. Tied tensors are summed once.
    """
    from swavg import console_looking, looking

    with console_looking.progress_bar("reading", stats) as on_progress:
        found = looking.inspect(
            checkpoint, key=key, stats=stats, include=include, on_progress=on_progress
        )
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        console_looking.show_inspection(found, tree=tree, everything=everything)
