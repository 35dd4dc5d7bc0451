"""``swavg diff``."""

from __future__ import annotations

from dataclasses import replace

import click

from swavg.cli.errors import with_options
from swavg.cli.options import SectionedCommand
from swavg.cli.printing import print_json
from swavg.cli.values import KEY, STRIP
from swavg.errors import MismatchError


@click.command(cls=SectionedCommand)
@click.argument("a", metavar="A", type=click.Path())
@click.argument("b", metavar="B", type=click.Path())
@click.option("--headers", is_flag=True, help="Look at names, shapes and dtypes only.")
@click.option("--values", is_flag=True, hidden=True, expose_value=False, help="The default.")
@click.option("--all", "everything", is_flag=True, help="List everything, not the first 20.")
@KEY
@STRIP
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def diff(
    a: str,
    b: str,
    headers: bool,
    everything: bool,
    key: str | None,
    strip_prefix: tuple[str, ...],
    as_json: bool,
) -> int:
    """Show in what two checkpoints differ: names, shapes, dtypes, and values.

    What wrappers put into names (module., _orig_mod., ...) does not count. Both are streamed in
    constant memory; ||a-b||/||a||, the largest |a-b| and the cosine of each tensor that differs are
    listed, in float64, the farthest first. NaN equals NaN. Optimizer state, and what is no
    tensor, is not compared.

    \b
    swavg diff step-100.pt step-200.pt            what moved, and how far?
    swavg diff a.pt b.safetensors --headers       do they fit together?

    Exit codes: 0 if no tensor differs in what was read (with --headers no name, shape or dtype), 3
    if any does; the others are those of swavg.
    """
    from swavg import analysis
    from swavg.console.comparison import show_comparison
    from swavg.console.progress import progress_bar

    with progress_bar("comparing", "bytes", shown=not headers) as on_progress:
        found = analysis.diff(
            a, b, key=key, strip_prefix=strip_prefix, values=not headers, on_progress=on_progress
        )
    params = click.get_current_context().command.params
    found = replace(found, notes=tuple(with_options(note, params) for note in found.notes))
    if as_json:
        print_json("comparison", found.to_json())
    else:
        show_comparison(found, everything=everything)
    return MismatchError.exit_code if found.same is False else 0
