"""``swavg average``."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from swavg.cli.options import Size, Weights, WeightsCommand, read_paths


@click.command(cls=WeightsCommand)
@click.argument("checkpoints", nargs=-1, metavar="CKPT...")
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    help="Where to write; '-' streams to stdout."
    " [default: averaged, with the suffix of the first input]",
)
@click.option(
    "-w",
    "--weights",
    type=Weights(),
    multiple=True,
    metavar="W...",
    help="One weight per checkpoint: 0.5 0.5, or 0.5,0.5. [default: the mean]",
)
@click.option(
    "--normalize", "sum_to", flag_value="normalize", help="Divide the weights by their sum."
)
@click.option(
    "--raw-weights",
    "sum_to",
    flag_value="raw",
    help="Use the weights as they are, whatever their sum.",
)
@click.option("-0", "--null", is_flag=True, help="Paths on stdin are separated by NUL.")
@click.option(
    "--strict/--lenient",
    default=True,
    help="All names, shapes and dtypes must match (default), or average what is shared.",
)
@click.option(
    "--missing",
    type=click.Choice(["keep", "drop", "average"]),
    default="keep",
    show_default=True,
    help="With --lenient: what some lack is taken from the last that"
    " has it, left out, or averaged over those that have it.",
)
@click.option("--include", multiple=True, metavar="GLOB", help="Average only these tensors.")
@click.option(
    "--exclude",
    multiple=True,
    metavar="GLOB",
    help="Do not average these; they are copied from the last checkpoint.",
)
@click.option("--drop-excluded", is_flag=True, help="Leave them out instead of copying them.")
@click.option(
    "--key",
    metavar="PATH",
    help="Where the state dict lies in a .pt, such as model.state_dict. [default: found]",
)
@click.option(
    "--dtype",
    type=click.Choice(["keep", "float32", "float64", "float16", "bfloat16"]),
    default="keep",
    show_default=True,
    help="Floats in the output.",
)
@click.option(
    "--accumulate",
    type=click.Choice(["auto", "float32", "float64"]),
    default="auto",
    show_default=True,
    help="Sums are taken in this dtype.",
)
@click.option(
    "--integers",
    type=click.Choice(["last", "first", "max", "mean", "error"]),
    default="last",
    show_default=True,
    help="Integer and bool tensors that differ.",
)
@click.option(
    "--drop-ties",
    is_flag=True,
    help="Write tied tensors once in safetensors (under their first name).",
)
@click.option("--weights-only", is_flag=True, help="Write a bare state dict to a .pt.")
@click.option(
    "--max-shard-size",
    type=Size(),
    metavar="SIZE",
    help="Write a folder of shards of at most this size, such as 5GB.",
)
@click.option("--allow-nonfinite", is_flag=True, help="Let NaN and Inf through.")
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="cpu|cuda|cuda:N",
    help="Where to compute. The bytes are the same.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Worker threads. [default: the processors of this process]",
)
@click.option("--memory", type=Size(), metavar="SIZE", help="Bound on buffers. [default: 32MiB]")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("-n", "--dry-run", is_flag=True, help="Print the plan and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", is_flag=True, help="Print inputs, plan and every exception.")
def average(
    checkpoints: tuple[str, ...],
    output: str | None,
    weights: tuple[tuple[float, ...], ...],
    sum_to: str | None,
    null: bool,
    strict: bool,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    device: str,
    threads: int | None,
    memory: int | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **policy: Any,
) -> None:
    """Average checkpoints into one, streamed in constant memory.

    CKPT are safetensors or PyTorch files, or folders as Hugging Face writes them; '-' reads paths
    from stdin, a line each. The path of what was written is the one line on stdout.

    \b
    swavg average a.pt b.pt                        the mean, in averaged.pt
    swavg average a b --weights 0.7 0.3 -o c       weighted
    ls -t ckpts/*.pt | head -5 | swavg average - -o avg.pt
    swavg average a b -o - | zstd > c.safetensors.zst
    """
    from swavg import console
    from swavg.averaging import prepare
    from swavg.pieces import Resources
    from swavg.plan import Policy
    from swavg.report import STDOUT

    if output in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
        output = STDOUT
    paths = read_paths(checkpoints, null)
    if not paths:
        raise click.UsageError("Give the checkpoints to average, or '-' to read paths from stdin.")
    if as_json and output == STDOUT and not dry_run:
        raise click.UsageError("--json and -o - both want standard output.")
    if output == STDOUT and not dry_run and sys.stdout.isatty():
        raise click.UsageError("Standard output is a terminal; pipe it, or give -o a path.")
    job = prepare(
        paths,
        [value for group in weights for value in group] if weights else None,
        output=None if output == STDOUT else output or "",
        policy=Policy(strict=strict, include=include, exclude=exclude, **policy),
        sum_to=sum_to or "one",  # type: ignore[arg-type]
        resources=Resources(device, threads, memory),
        force=force,
    )
    if dry_run:
        job.check()
        report = job.report()
        if as_json:
            click.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
        else:
            console.plan(report)
            console.warn(report.notes)
        return
    with console.progress_bar(not quiet) as on_progress:
        report = job.run(on_progress)
    if not quiet:
        console.summary(report, verbose)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    elif output != STDOUT:
        click.echo(report.output)
