"""``swavg bn``."""

from __future__ import annotations

from dataclasses import asdict

import click

from swavg.cli.averaging import output_path
from swavg.cli.options import SectionedCommand
from swavg.cli.printing import print_published
from swavg.cli.signals import ignore_signals
from swavg.cli.values import COUNT, KEY, STRIP


@click.command(cls=SectionedCommand)
@click.argument("averaged", metavar="AVERAGED", type=click.Path())
@click.option(
    "--model",
    required=True,
    metavar="MODULE:NAME",
    help="A function that returns the model. Or the model itself: package.module:build or"
    " path/to/file.py:build.",
)
@click.option(
    "--data",
    required=True,
    metavar="MODULE:NAME",
    help="A function that returns batches. Of training data; or these: a DataLoader, a list.",
)
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    type=click.Path(),
    help="Where to write. '-' streams to stdout. [default: STEM-bn.SUFFIX]",
)
@click.option(
    "--batches", type=COUNT, metavar="N", help="Take only the first N. [default: all batches]"
)
@click.option(
    "--device",
    default="cpu",
    envvar="SWAVG_DEVICE",
    show_envvar=True,
    show_default=True,
    metavar="cpu|cuda|cuda:N",
    help="Where to run the model.",
)
@KEY
@STRIP
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def bn(
    averaged: str,
    model: str,
    data: str,
    output: str | None,
    batches: int | None,
    device: str,
    key: str | None,
    strip_prefix: tuple[str, ...],
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Recompute the batch-norm statistics of an average with one pass over data.

    Statistics that were averaged belong to none of the inputs, nor to the averaged weights. Here
    the model runs on training data with these weights, and its running means and variances become
    the averages over all batches. Only these tensors change; the rest is copied as bytes.

    A batch is (inputs..., target), one tensor, or a mapping of keyword arguments. The code that
    --model and --data name is run; it is found from the current folder, too.

    \b
    swavg bn averaged.pt --model train:build_model --data train:build_loader
    swavg bn avg.safetensors --model model.py:Net --data data.py:loader \\
        --batches 100 -o avg-bn.pt
    """
    path = output_path(output, as_json=as_json, dry_run=False)
    from swavg.console import recalibration
    from swavg.console.progress import progress_bar
    from swavg.engine.report import STDOUT
    from swavg.evaluation import loading

    loading.require_torch()
    from swavg.evaluation.fresh_statistics import device_of
    from swavg.evaluation.recalibrate import check_output, recalibrate

    # Building the data may take minutes: what can be refused is refused before.
    device_of(device)
    check_output(averaged, path, key=key, strip_prefix=strip_prefix, force=force)
    with loading.prints_on_stderr():
        net = loading.build_model(model)
        loader = loading.build_batches(data)
        with progress_bar("recomputing", "batches", shown=not quiet) as on_batch:
            done = recalibrate(
                averaged,
                net,
                loader,
                output=path,
                limit=batches,
                device=device,
                key=key,
                strip_prefix=strip_prefix,
                force=force,
                on_batch=on_batch,
                on_publish=ignore_signals,
            )
    if not quiet:
        recalibration.summary(done)
    paths = [done.output] if done.output != STDOUT else []
    print_published("bn", [{"dry_run": False, **asdict(done)}], paths, as_json=as_json)
