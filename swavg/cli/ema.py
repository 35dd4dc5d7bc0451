"""``swavg ema``."""

from __future__ import annotations

import click

from swavg.cli.averaging import AGAIN, Run, averaging_command, output_option, output_path
from swavg.cli.executing import execute_and_report
from swavg.cli.options import Headed
from swavg.cli.selection import Selection, selected, selection_options
from swavg.cli.values import NULL, read_paths
from swavg.planning.policy import Policy
from swavg.weights import WARMUPS


@averaging_command()
@click.argument("checkpoints", nargs=-1, required=True, metavar="CKPT...", type=click.Path())
@output_option("ema")
@click.option(
    "--decay",
    type=float,
    metavar="D",
    help="Weight of what came before. Per checkpoint; per step with --per-step.",
)
@click.option(
    "--half-life",
    metavar="H",
    help="The distance at which a weight has halved. 2000steps, 5epochs or 3checkpoints; a bare"
    " number counts steps where they are known.",
)
@click.option("--span", cls=Headed, metavar="S", help="As in pandas: decay 1 - 2/(S+1).")
@click.option(
    "--per-step", cls=Headed, is_flag=True, help="Count the distance between checkpoints in steps."
)
@click.option(
    "--debias",
    cls=Headed,
    is_flag=True,
    help="Start from zero and correct for it. Otherwise the first checkpoint is the start.",
)
@click.option(
    "--warmup",
    cls=Headed,
    type=click.Choice([*WARMUPS]),
    help="Let the decay grow up to --decay. As these projects do.",
)
@click.option(
    "--schedule",
    cls=Headed,
    type=click.Choice(["bema"]),
    help="A bias-corrected EMA (arXiv 2508.00180) over training steps, instead of a decay.",
)
@click.option(
    "--resume",
    type=click.Path(),
    metavar="EMA",
    help="Go on from an EMA that swavg wrote. The checkpoints are those after it.",
)
@AGAIN
@NULL
@selection_options
def ema(
    checkpoints: tuple[str, ...],
    output: str | None,
    decay: float | None,
    half_life: str | None,
    span: str | None,
    per_step: bool,
    debias: bool,
    warmup: str | None,
    schedule: str | None,
    resume: str | None,
    again: bool,
    null: bool,
    selection: Selection,
    policy: Policy,
    run: Run,
) -> None:
    """Exponential moving average of a series, oldest first.

    \b
    swavg ema ckpts/*.safetensors --decay 0.99 -o ema.safetensors
    swavg ema run/ --half-life 2000steps --dtype float32 -o ema.safetensors
    swavg ema run/ --decay 0.9 --resume ema.safetensors -o later.safetensors
    """
    if again and resume is None:
        raise click.UsageError("--again says what --resume may add; give --resume EMA.")
    path = output_path(output, as_json=run.as_json, dry_run=run.dry_run)
    from swavg import methods

    paths = read_paths(checkpoints, null=null)
    notes: list[str] = []
    if schedule is not None:
        if any((decay, half_life, span, per_step, debias, warmup, resume)):
            raise click.UsageError("--schedule bema has decays of its own: it goes with no other.")
        series = selected(paths, selection, in_order=True, choosing=True, steps=True)
        request = methods.bema(series, policy=policy)
    else:
        steps = methods.counts_steps(half_life, span, per_step=per_step)
        series = selected(paths, selection, in_order=True, choosing=True, steps=steps)
        smoothing = methods.smoothing(
            series.steps,
            decay=decay,
            half_life=half_life,
            span=span,
            per_step=per_step,
            debias=debias,
            warmup=warmup,
            counting=series.unit,
        )
        if half_life is not None or span is not None:
            unit = f"{series.unit or 'step'}s" if smoothing.per_step else "checkpoints"
            notes = [f"counted in {unit}: the decay is {smoothing.decay:.8g} per {unit[:-1]}"]
        request = methods.ema(series, smoothing, policy=policy, resume=resume, again=again)
    chosen = {*series.paths} != {*paths}
    execute_and_report(request, [path], run, [*series.notes, *notes], chosen=chosen)
