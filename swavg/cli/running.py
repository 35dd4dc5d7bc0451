"""What commands that write averages share: their options, and doing what they planned."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from swavg.cli.options import Size
from swavg.cli.outputs import made
from swavg.cli.surroundings import ignore_signals, require_stdout

if TYPE_CHECKING:
    from swavg.job import Job

STDOUT = "-"
_STDOUT_NAMES = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")

OUTPUT = click.option(
    "-o", "--output", metavar="OUT",
    help="Where to write; '-' streams to stdout. [default: averaged, with the suffix of the first"
    " input]",
)  # fmt: skip
FOLDER = click.option(
    "-d", "--folder", metavar="OUTDIR", help="The folder for the outputs; made if need be."
)

_POLICY = (
    click.option("--strict/--lenient", default=True,
                 help="All names, shapes and dtypes must match (default), or average what is"
                 " shared."),
    click.option("--missing", type=click.Choice(["keep", "drop", "average"]),
                 help="With --lenient: what some lack is taken from the last that has it, left"
                 " out, or averaged over those that have it. [default: keep]"),
    click.option("--include", multiple=True, metavar="GLOB", help="Average only these tensors."),
    click.option("--exclude", multiple=True, metavar="GLOB",
                 help="Do not average these; they are copied from the last checkpoint."),
    click.option("--drop-excluded", is_flag=True, help="Leave them out instead of copying them."),
    click.option("--key", metavar="PATH", help="Where the state dict lies in a .pt, such as"
                 " model.state_dict. [default: found]"),
    click.option("--dtype",
                 type=click.Choice(["keep", "float32", "float64", "float16", "bfloat16"]),
                 default="keep", show_default=True, help="Floats in the output."),
    click.option("--accumulate", type=click.Choice(["auto", "float32", "float64"]), default="auto",
                 show_default=True, help="Sums are taken in this dtype."),
    click.option("--integers", type=click.Choice(["last", "first", "max", "mean", "error"]),
                 default="last", show_default=True, help="Integer and bool tensors that differ."),
    click.option("--pool-batch-norm", is_flag=True,
                 help="Running variances become those of a mixture of the inputs; 'swavg bn'"
                 " recomputes them, with data."),
    click.option("--drop-ties", is_flag=True,
                 help="Write tied tensors once in safetensors (under their first name)."),
    click.option("--weights-only", is_flag=True, help="Write a bare state dict to a .pt."),
    click.option("--max-shard-size", type=Size(), metavar="SIZE",
                 help="Write a folder of shards of at most this size, such as 5GB."),
    click.option("--allow-nonfinite", is_flag=True, help="Let NaN and Inf through."),
)  # fmt: skip

_RUN = (
    click.option("--no-geometry", "geometry", flag_value=False, default=True,
                 help="Do not look how far each input lies from the average."),
    click.option("--device", default="cpu", show_default=True, metavar="cpu|cuda|cuda:N",
                 help="Where to compute. The bytes are the same."),
    click.option("--threads", type=click.IntRange(min=1), metavar="N",
                 help="Workers. [default: the processors of this process]"),
    click.option("--memory", type=Size(), metavar="SIZE",
                 help="Bound on buffers. [default: 32MiB]"),
    click.option("--force", is_flag=True, help="Replace an existing output."),
    click.option("-n", "--dry-run", is_flag=True, help="Print the plan and write nothing."),
    click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
    click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
    click.option("-v", "--verbose", is_flag=True, help="Print inputs, plan and every exception."),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Running:
    """The values of the shared options."""

    policy: dict[str, Any]
    geometry: bool
    device: str
    threads: int | None
    memory: int | None
    force: bool
    dry_run: bool
    as_json: bool
    quiet: bool
    verbose: bool

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for :func:`swavg.averaging.prepare_many`."""
        from swavg.pieces import Resources
        from swavg.policy import Policy

        return {
            "policy": Policy(**self.policy),
            "resources": Resources(self.device, self.threads, self.memory),
            "force": self.force,
            "geometry": self.geometry,
        }

    def where(self, output: str | None) -> str | None:
        """The library's output for ``-o``: None for standard output, empty for the default."""
        if output in _STDOUT_NAMES:
            output = STDOUT
        if output != STDOUT:
            return output or ""
        if not self.dry_run:
            if self.as_json:
                raise click.UsageError("--json and -o - both want standard output.")
            require_stdout()
            if sys.stdout.isatty():
                raise click.UsageError("Standard output is a terminal; pipe it, or give -o a path.")
        return None

    def do(self, jobs: Sequence[Job], notes: Sequence[str] = (), folder: str | None = None) -> None:
        """Run the jobs with one read of the inputs, or print what they would do.

        ``folder`` is made for the outputs, and goes again if nothing was written.
        """
        from swavg import console
        from swavg.job import run_together

        if self.dry_run:
            if folder is None or os.path.isdir(folder):
                for job in jobs:
                    job.check()
            reports = [job.report() for job in jobs]
            if self.as_json:
                _print_json(reports)
                return
            for report in reports:
                console.plan(report)
            console.warn([*notes, *reports[0].notes])
            return
        if not self.quiet:
            console.warn(notes)
        with (
            made(folder) if folder is not None else nullcontext(),
            console.progress_bar(not self.quiet) as on_progress,
        ):
            reports = run_together(jobs, on_progress, ignore_signals)
        if not self.quiet:
            console.summary(reports, self.verbose)
        if self.as_json:
            _print_json(reports)
            return
        for report in reports:
            if report.output != STDOUT:
                click.echo(report.output)


def _print_json(reports: Sequence[Any]) -> None:
    values = [report.to_json() for report in reports]
    text = json.dumps(values[0] if len(values) == 1 else values, indent=2, ensure_ascii=False)
    click.echo(text)


def running_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the shared options to a command, which gets them as one argument, ``running``."""
    run_names = ("geometry", "device", "threads", "memory", "force", "dry_run", "as_json",
                 "quiet", "verbose")  # fmt: skip
    policy_names = ("strict", "missing", "include", "exclude", "drop_excluded", "key", "dtype",
                    "accumulate", "integers", "pool_batch_norm", "drop_ties", "weights_only",
                    "max_shard_size", "allow_nonfinite")  # fmt: skip

    @functools.wraps(command)
    def bundled(**values: Any) -> Any:
        # NumPy's linear algebra has next to nothing to do here: no threads for it.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        policy = {name: values.pop(name) for name in policy_names}
        if policy["missing"] is not None and policy["strict"]:
            raise click.UsageError("--missing says what --lenient does; add --lenient.")
        policy["missing"] = policy["missing"] or "keep"
        run = {name: values.pop(name) for name in run_names}
        return command(running=Running(policy, **run), **values)

    decorated: Callable[..., Any] = bundled
    for option in reversed((*_POLICY, *_RUN)):
        decorated = option(decorated)
    return decorated
