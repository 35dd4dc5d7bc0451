"""``swavg verify``."""

from __future__ import annotations

import click

from swavg.cli.options import SectionedCommand
from swavg.cli.printing import print_json
from swavg.cli.values import COUNT


@click.command(cls=SectionedCommand)
@click.argument("output", metavar="OUT", type=click.Path())
@click.argument("inputs", nargs=-1, metavar="[INPUT]...", type=click.Path())
@click.option("--all", "everything", is_flag=True, help="Compare all of it, not a sample.")
@click.option("--threads", type=COUNT, metavar="N", envvar="SWAVG_THREADS", show_envvar=True,
              help="Workers.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def verify(
    output: str, inputs: tuple[str, ...], everything: bool, threads: int | None, as_json: bool
) -> None:
    """Prove that an average is what its recipe says.

    It is made again from its inputs, and compared bit by bit, without being written. INPUT are the
    inputs in the order of the recipe (swavg inspect shows it), or the folder that they lie in, at
    any depth; without them they are looked for by their names, sizes and fingerprints, near OUT and
    here. Of a large output a sample is compared.

    \b
    swavg verify avg.safetensors
    swavg verify avg.safetensors --all

    Exit codes: 0 if no byte differs, 3 for the first that does, 4 if there is no recipe or an input
    is gone or has changed.
    """
    from swavg.console import messages
    from swavg.console.progress import progress_bar
    from swavg.console.text import size
    from swavg.engine.report import Progress
    from swavg.engine.resources import Resources
    from swavg.engine.verify import verify

    with progress_bar("comparing", "bytes", shown=True) as update:

        def on_progress(progress: Progress) -> None:
            assert update is not None
            update(progress.read, progress.total)

        found = verify(
            output,
            inputs,
            everything=everything,
            resources=Resources(threads=threads),
            on_progress=on_progress,
        )
    if as_json:
        print_json("verified", found.to_json())
        return
    share = found.proven / found.total if found.total else 1.0
    of = "all" if found.proven == found.total else f"{share:.1%}"
    click.echo(f"{output}: {of} of {size(found.total)} proven from {len(found.inputs)} inputs")
    messages.notes([*found.notes])
