"""``swavg completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from swavg.cli.options import SectionedCommand

_VARIABLE = "_SWAVG_COMPLETE"


@click.command(cls=SectionedCommand)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes a shell complete commands, options and paths.

    A line for ~/.bashrc or ~/.zshrc: eval "$(swavg completion bash)"; fish reads a file in
    ~/.config/fish/completions.

    \b
    swavg completion bash
    swavg completion fish > swavg.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "swavg", _VARIABLE).source())
