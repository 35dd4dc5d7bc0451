"""The command line: one file per command over the library; the only user of click."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from swavg import __version__
from swavg.cli.errors import Job, is_memory_short, print_error, tell, tell_memory_short
from swavg.cli.options import HelpContext
from swavg.cli.signals import exit_code, stop_on_signals
from swavg.cli.streams import discard_stdout, reopen_closed
from swavg.errors import OutputError, SwavgError, did_you_mean
from swavg.storage.sinks import STDOUT

_COMMANDS = {
    "average": "Average checkpoints into one.",
    "ema": "Exponential moving average of a series.",
    "update": "Add checkpoints to a running average, or move a window on.",
    "window": "The mean between two running averages.",
    "posthoc": "EMAs of any width from power-function snapshots.",
    "sweep": "Many averages from one read of a series.",
    "soup": "The average of those checkpoints whose average scores best.",
    "convert": "Write a checkpoint in another format.",
    "bn": "Recompute batch-norm statistics of an average.",
    "eval": "Evaluate checkpoints and averages: which is best?",
    "landscape": "The loss on the plane through three checkpoints.",
    "path": "The loss along the line between two checkpoints.",
    "watch": "Average the checkpoints of a run while it is trained.",
    "run": "Run what a file says that --save-job wrote.",
    "list": "Show a series: steps, metrics, and what would be chosen.",
    "inspect": "Show what a checkpoint holds.",
    "verify": "Prove that an average is what its recipe says.",
    "diff": "Show in what two checkpoints differ.",
    "completion": "Print what makes a shell complete commands and paths.",
}


class _LazyGroup(click.Group):
    """Commands are imported when they are called, so that --help starts at once."""

    context_class = HelpContext

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _command(cmd_name) if cmd_name in _COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        near = did_you_mean(args[0], _COMMANDS)
        if args[0] not in _COMMANDS and near is not None and not args[0].startswith("-"):
            ctx.fail(f"No such command '{args[0]}'. {near}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([*_COMMANDS.items()])


def _command(name: str) -> click.Command:
    module = importlib.import_module(f"swavg.cli.{name}")
    # A function called list would hide the type.
    command = getattr(module, f"{name}_command" if name in ("list", "eval") else name)
    assert isinstance(command, click.Command)
    return command


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="swavg COMMAND -h shows its usual options, swavg COMMAND --help all of them.",
)
@click.version_option(__version__, package_name="swavg", message="swavg %(version)s")
def cli() -> None:
    """Average neural-network checkpoints, streamed in constant memory.

    \b
    swavg average a.pt b.pt                          the mean, in averaged.pt
    swavg list run/                                  what a run holds
    swavg average run/ --last 5 -o avg.safetensors   the mean of its last five

    Exit codes: 0 done, 1 a bug or a killed worker, 2 usage, 3 the checkpoints do not match, 4 an
    input is missing, corrupt or unsafe, 5 the output cannot be written, 6 numbers refused (NaN,
    Inf, overflow), 7 the output exists, 130 interrupted, 141 the reader of standard output is gone,
    143 terminated. On every code but 0 the destination is as it was.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    stop_on_signals()
    reopen_closed()
    raise SystemExit(_run([*(sys.argv[1:] if arguments is None else arguments)]))


def _run(args: Sequence[str]) -> int:
    """Run the command line; its exit code."""
    options = args[: args.index("--")] if "--" in args else args
    job = Job()

    def said(*names: str) -> bool:
        """Whether one of these options is used, here or in a job."""
        return any(word.partition("=")[0] in names for word in (*options, *job.options))

    try:
        code = cli.main(args=[*args], prog_name="swavg", standalone_mode=False, obj=job)
    except SwavgError as error:
        if isinstance(error, OutputError) and error.path == STDOUT:
            discard_stdout()
        named = (_command(word) for word in args if word in _COMMANDS)
        verbose = said("-v", "--verbose")
        return tell(
            error, job.command or next(named, None), as_json=said("--json"), verbose=verbose
        )
    except (MemoryError, OSError, ImportError) as error:
        if not is_memory_short(error):
            raise
        return tell_memory_short(as_json=said("--json"))
    except click.ClickException as error:
        error.show()
        if said("--json"):
            print_error(2, "usage", error.format_message())
        return 2
    except (KeyboardInterrupt, click.Abort) as stopped:
        code = exit_code(stopped.__cause__ if isinstance(stopped, click.Abort) else stopped)
        kept = "watch" in args[:1] or said("--continue", "--part")
        did = "what was done stays, and the same call goes on" if kept else "nothing was written"
        text = f"interrupted; {did}"
        print(f"swavg: {text}", file=sys.stderr)
        if said("--json"):
            print_error(code, "interrupted", text)
        return code
    return code if isinstance(code, int) else 0
