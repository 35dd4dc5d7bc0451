"""The options that commands which write averages share."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import click
from click.core import ParameterSource

from swavg.cli.options import Command, Headed, Option, SectionedCommand, filled
from swavg.cli.streams import require_stdout
from swavg.cli.values import COUNT, KEY_HELP, STRIP_HELP, FormatName, Size
from swavg.planning.policy import Policy

if TYPE_CHECKING:
    from swavg.engine.resources import Resources

_STDOUT_NAMES = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def output_option(name: str) -> Callable[[Command], Command]:
    """``-o``, without which the output has this ``name``."""
    return click.option(
        "-o", "--output", metavar="OUT", type=click.Path(),
        help="Where to write. A path (folders above it are made), s3://, gs:// or az://, or '-' for"
        " stdout; without it the suffix is that of the first input."
        f" [default: {name}.SUFFIX]",
    )  # fmt: skip


OUTPUT = output_option("averaged")
AGAIN = click.option(
    "--again", cls=Headed, is_flag=True,
    help="Add also what the average holds already. It counts once more.",
)  # fmt: skip
FOLDER = click.option(
    "-d", "--folder", metavar="OUTDIR", type=click.Path(),
    help="The folder for the outputs; made if need be.",
)  # fmt: skip

_POLICY = {
    "Tensors": (
        Option("strict", "--strict/--lenient",
               "All must match, or average what is shared. Names, shapes and dtypes of tensors;"
               " --strict is the default.", daily=True),
        Option("missing", "--missing",
               "With --lenient: what some lack is taken from the last that has it, left out, or"
               " averaged over those that have it. [default: keep]"),
        Option("mixed_dtypes", "--mixed-dtypes",
               "Floats of different dtypes match; each tensor is summed in the widest accumulator"
               " that its inputs ask for, and written as --dtype says or as in the first."),
        Option("include", "--include", "Average only these tensors.", "GLOB"),
        Option("exclude", "--exclude",
               "Do not average these tensors. They are copied from the last checkpoint.", "GLOB",
               daily=True),
        Option("strip_prefix", "--strip-prefix", STRIP_HELP, "PREFIX"),
        Option("rename", "--rename",
               "Put B for A where A is a part of a name, or some, between dots: 'gamma=weight',"
               " 'encoder.layer=blocks', 'base_model='. Names of the output are the new ones.",
               "A=B"),
        Option("drop_excluded", "--drop-excluded", "Leave them out instead of copying them."),
        Option("key", "--key", KEY_HELP, "PATH"),
        Option("integers", "--integers",
               "Integer and bool tensors that differ; auto: the last of a single element, an error"
               " of more."),
        Option("lora", "--lora",
               "LoRA: the mean of A and that of B, or factors of more rank whose product is exactly"
               " the average."),
        Option("drop_ties", "--drop-ties",
               "Write tied tensors once in safetensors (under their first name)."),
        Option("allow_nonfinite", "--allow-nonfinite", "Let NaN and Inf through."),
    ),
    "Numbers and format": (
        Option("dtype", "--dtype", "Floats in the output.", daily=True),
        Option("accumulate", "--accumulate", "Sums are taken in this dtype."),
        Option("weights_only", "--weights-only", "Write a bare state dict to a .pt."),
        Option("max_shard_size", "--max-shard-size",
               "Write a folder of shards of at most this size, such as 5GB.", "SIZE", Size()),
        Option("format", "--format",
               "Of the output. [default: by its suffix, or as the first input]",
               "|".join(FormatName.names), FormatName()),
        Option("digest", "--digest",
               "full: the recipe has a digest of all bytes of each input, for which they are read"
               " once more."),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """What a run may use and replace, and what it shows."""

    distances: bool = True
    card: bool = False
    device: str = "cpu"
    threads: int | None = None
    memory: int | None = None
    check_crc: bool = False
    engine: Literal["local", "ray"] = "local"
    address: str | None = None
    part: str | None = None
    finish: bool = False
    proceed: bool = False
    if_stale: bool = False
    force: bool = False
    dry_run: bool = False
    save_job: str | None = None
    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    @property
    def resources(self) -> Resources:
        from swavg.engine.resources import Resources

        return Resources(
            self.device,
            self.threads,
            self.memory,
            check_crc=self.check_crc,
            engine=self.engine,
            address=self.address,
        )


_RUN = (
    Option("distances", "--no-geometry", "Do not look how far each input lies from the average."),
    Option("card", "--card",
           "Write README.md into an output that is a folder: what it was made of, and how."),
    Option("device", "--device", "Where to compute. The bytes are the same.", "cpu|cuda|cuda:N",
           environment="SWAVG_DEVICE"),
    Option("threads", "--threads",
           "Workers. [default: the processors of this process, at most 8]", "N", COUNT,
           "SWAVG_THREADS"),
    Option("memory", "--memory", "Bound on buffers. [default: 32MiB; 256MiB on a GPU]", "SIZE",
           Size(), "SWAVG_MEMORY"),
    Option("check_crc", "--check-crc",
           "Compare what is read with the checksums that PyTorch files hold; it takes longer."),
    Option("engine", "--engine",
           "What does the work; ray: a cluster whose nodes see all files (docs/scale.md)."),
    Option("address", "--address",
           "The Ray cluster. [default: what RAY_ADDRESS says, or the one of this machine]",
           "HOST:PORT"),
    Option("part", "--part",
           "Make part I of N, on any machine that sees the folder; --finish follows.", "I/N"),
    Option("finish", "--finish", "Give the output its name, once all parts are made."),
    Option("proceed", "--continue",
           "Keep a journal: a run that was killed goes on where it was, with the same call."),
    Option("if_stale", "--if-stale",
           "Do nothing if the output is there, of this recipe and these inputs; else replace it."),
    Option("force", "--force", "Replace an existing output.", daily=True),
    Option("dry_run", "-n --dry-run", "Print the plan and write nothing.", daily=True),
    Option("save_job", "--save-job",
           "Write this call down as well, for swavg run: a file to be reviewed and kept.", "FILE",
           click.Path()),
    Option("as_json", "--json", "Print the report as JSON."),
    Option("quiet", "-q --quiet", "Print errors only."),
    Option("verbose", "-v --verbose", "Print inputs, plan and every exception."),
)  # fmt: skip


def policy_options() -> Iterator[Option]:
    """Those that say what becomes of tensors."""
    return (option for section in _POLICY.values() for option in section)


def averaging_command(
    kind: type[click.Command] = SectionedCommand,
    without: Sequence[str] = (),
) -> Callable[[Command], click.Command]:
    """A command with the options that say what becomes of tensors, how it runs and what it shows,
    ``without`` those of these fields; it gets ``policy`` and ``run``."""

    def left(options: Sequence[Option]) -> list[Option]:
        return [option for option in options if option.field not in without]

    sections = {heading: left(options) for heading, options in _POLICY.items()}

    def decorate(command: Command) -> click.Command:
        @functools.wraps(command)
        def called(policy: Policy, **values: object) -> object:
            source = click.get_current_context().get_parameter_source("missing")
            if policy.strict and source not in (None, ParameterSource.DEFAULT):
                raise click.UsageError("--missing says what --lenient does; add --lenient.")
            # NumPy's linear algebra has next to nothing to do here: no threads for it.
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
            return command(policy=policy, **values)

        with_run = filled("run", Run, {"Running": left(_RUN)})(called)
        return click.command(cls=kind)(filled("policy", Policy, sections)(with_run))

    return decorate


def output_path(output: str | None, *, as_json: bool, dry_run: bool) -> str | None:
    """The library's output for ``-o``: None for standard output, empty for the default."""
    if output not in _STDOUT_NAMES:
        return output or ""
    if not dry_run:
        if as_json:
            raise click.UsageError("--json and -o - both want standard output.")
        require_stdout()
        if sys.stdout.isatty():
            raise click.UsageError("Standard output is a terminal; pipe it, or give -o a path.")
    return None
