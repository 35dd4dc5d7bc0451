"""``swavg average``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from swavg.cli.averaging import OUTPUT, Run, averaging_command, output_path
from swavg.cli.executing import execute_and_report
from swavg.cli.options import Headed
from swavg.cli.selection import Selection, selected, selection_options
from swavg.cli.values import NULL, NameOrPath, Weights, WeightsCommand, read_paths
from swavg.planning.policy import Policy
from swavg.weights import ANNEALINGS

if TYPE_CHECKING:
    from swavg.planning.row import Request
    from swavg.series import Series
    from swavg.weights import Sum


@averaging_command(WeightsCommand)
@click.argument("checkpoints", nargs=-1, metavar="CKPT...", type=click.Path())
@OUTPUT
@click.option(
    "-w",
    "--weights",
    type=Weights(),
    multiple=True,
    metavar="W...",
    help="One weight per checkpoint: 0.5 0.5, or 0.5,0.5. [default: the mean]",
)
@click.option(
    "--normalize",
    "sum_to",
    cls=Headed,
    flag_value="normalize",
    help="Divide the weights by their sum.",
)
@click.option(
    "--raw-weights",
    "sum_to",
    cls=Headed,
    flag_value="raw",
    help="Use the weights as they are, whatever their sum.",
)
@click.option(
    "--anneal",
    type=NameOrPath(ANNEALINGS),
    metavar="SCHEDULE",
    help="Weights that stand for learning-rate decay. Over the checkpoints, oldest first: linear"
    " (the mean), cosine, 1-sqrt, or a file of factors, one a line.",
)
@click.option("--by-metric", metavar="NAME", help="Weights by the softmax of a metric.")
@click.option(
    "--temperature", cls=Headed, type=float, metavar="T", help="Of the softmax. [default: 1]"
)
@NULL
@selection_options
def average(
    checkpoints: tuple[str, ...],
    output: str | None,
    weights: tuple[tuple[float, ...], ...],
    sum_to: Sum | None,
    anneal: str | None,
    by_metric: str | None,
    temperature: float | None,
    null: bool,
    selection: Selection,
    policy: Policy,
    run: Run,
) -> None:
    """Average checkpoints into one, streamed in constant memory.

    CKPT are safetensors, PyTorch or NumPy files, folders as Hugging Face writes them, distributed
    checkpoints (torch, DeepSpeed), those of TensorFlow, Keras, Flax and Orbax, folders of parts
    (ranks, pipelines: each part is averaged with its namesakes), or a folder of checkpoints to
    choose from, here or by a URL (s3://, gs://, az://, abfss://, https://, hf://ORG/NAME/PATH); '-'
    reads paths from stdin, a line each. The path of what was written is the one line on stdout.

    \b
    swavg average a.pt b.pt                        the mean, in averaged.pt
    swavg average a b --weights 0.7 0.3 -o c       weighted
    swavg average run/ --last 5 -o avg.safetensors
    swavg average run/ --best 3 --metric val_loss
    swavg average run/ --last 5 --anneal 1-sqrt
    ls -t ckpts/*.pt | head -5 | swavg average - -o avg.pt
    swavg average a b -o - | zstd > c.safetensors.zst
    """
    paths = read_paths(checkpoints, null=null)
    if not paths:
        raise click.UsageError("Give the checkpoints to average, or '-' to read paths from stdin.")
    path = output_path(output, as_json=run.as_json, dry_run=run.dry_run)
    ways = {"--weights": weights, "--anneal": anneal, "--by-metric": by_metric}
    if not weights:
        ways["--normalize or --raw-weights"] = sum_to
    _check_one_way(ways)
    if temperature is not None and by_metric is None:
        raise click.UsageError("--temperature is that of --by-metric; add --by-metric NAME.")
    if anneal is not None:
        from swavg import methods

        series = selected(paths, selection, in_order=True)
        request = methods.anneal(series, anneal, policy=policy)
    elif by_metric is not None:
        heat = 1.0 if temperature is None else temperature
        series, request = _by_metric(paths, selection, by_metric, heat, policy)
    else:
        values = [value for group in weights for value in group] if weights else None
        series, request = _weighted(paths, selection, values, sum_to or "one", policy)
    chosen = {*request.inputs} != {*paths}
    execute_and_report(request, [path], run, series.notes, chosen=chosen)


def _check_one_way(ways: Mapping[str, object]) -> None:
    """UsageError where several options say what the weights are."""
    used = [name for name, value in ways.items() if value]
    if len(used) > 1:
        raise click.UsageError(f"{used[0]} and {used[1]} both say what the weights are.")


def _by_metric(
    paths: Sequence[str], selection: Selection, metric: str, temperature: float, policy: Policy
) -> tuple[Series, Request]:
    """What is averaged by the softmax of a metric; --mode is that of --best, if that is given."""
    from swavg import methods

    own_mode = selection.best is None
    series = selected(
        paths, replace(selection, mode=None) if own_mode else selection, measured=True
    )
    request = methods.by_metric(
        series, metric, policy=policy, mode=selection.mode, temperature=temperature
    )
    return series, request


def _weighted(
    paths: Sequence[str],
    selection: Selection,
    values: Sequence[float] | None,
    sum_to: Sum,
    policy: Policy,
) -> tuple[Series, Request]:
    """What is averaged with these weights; None: the mean."""
    from swavg.planning.row import Request, Row
    from swavg.weights import checked, mean

    if values is not None and selection.by_position:
        from swavg.series import in_given_order

        # Weights belong to the paths as they were given; those of a searched folder go by step.
        if in_given_order(paths, keep_order=True) is not None:
            selection = replace(selection, keep_order=True)
    series = selected(paths, selection)
    n = len(series)
    numbers = mean(n) if values is None else checked(values, n, sum_to)
    steps = series.steps
    details = {"step": steps[-1]} if n and steps[-1] is not None else {}
    row = Row(numbers, tuple(range(n)), details=details)
    return series, Request(series.paths, (row,), policy, shared=series.shared)
