"""The command line: one file per command over the library; the only user of click."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from swavg import __version__
from swavg.cli.surroundings import forget_stdout, settle_streams, stop_on_signals
from swavg.errors import MismatchError, OutputError, SwavgError

_COMMANDS = {
    "average": "Average checkpoints into one.",
    "ema": "Exponential moving average of a series.",
    "update": "Add checkpoints to a running average, or move a window on.",
    "window": "The mean between two running averages.",
    "posthoc": "EMAs of any width from power-function snapshots.",
    "sweep": "Many averages from one read of a series.",
    "bn": "Recompute batch-norm statistics of an average.",
    "landscape": "The loss on the plane through three checkpoints.",
    "path": "The loss along the line between two checkpoints.",
    "list": "Show a series: steps, metrics, and what would be chosen.",
    "inspect": "Show what a checkpoint holds.",
    "diff": "Show in what two checkpoints differ.",
}


class _LazyGroup(click.Group):
    """Commands are imported when they are called, so that --help starts at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(importlib.import_module(f"swavg.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([*_COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="swavg", message="swavg %(version)s")
def cli() -> None:
    """Average neural-network checkpoints, streamed in constant memory.

    \b
    swavg average a.safetensors b.safetensors --weights 0.5 0.5 -o c.safetensors
    ls -t ckpts/*.pt | head -5 | swavg average - -o averaged.pt

    Exit codes: 0 done, 1 a bug or a killed worker, 2 usage, 3 the checkpoints do not match, 4 an
    input is missing, corrupt or unsafe, 5 the output cannot be written or exists, 6 numbers refused
    (NaN, Inf, overflow), 130 interrupted. On every code but 0 the destination is as it was.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    stop_on_signals()
    settle_streams()
    # Not list(): that is a command's module here, once it has been imported.
    args = [*(sys.argv[1:] if arguments is None else arguments)]
    try:
        code = cli.main(args=args, prog_name="swavg", standalone_mode=False)
    except SwavgError as error:
        if isinstance(error, OutputError) and error.path == "standard output":
            forget_stdout()
        _report(error, "-v" in args or "--verbose" in args)
        _exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        _exit(2)
    except (KeyboardInterrupt, click.Abort):
        print("swavg: interrupted; nothing was written", file=sys.stderr)
        _exit(130)
    except (BrokenPipeError, SystemExit):
        if "_SWAVG_COMPLETE" in os.environ:
            # A shell asked for completions.
            raise
        # Otherwise click exits by itself for one reason only: standard output was closed.
        print("swavg: the reader of standard output went away", file=sys.stderr)
        forget_stdout()
        _exit(5)
    _exit(code if isinstance(code, int) else 0)


def _exit(code: int) -> NoReturn:
    raise SystemExit(code)


def _report(error: SwavgError, verbose: bool) -> None:
    from swavg import console
    from swavg.cli.arguments import as_options

    if isinstance(error, MismatchError) and len(error.differences) > 1:
        console.differences(error.differences, verbose)
    console.error(as_options(error.message), as_options(error.hint or ""))
