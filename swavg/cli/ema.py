"""``swavg ema``."""

from __future__ import annotations

import click

from swavg.cli.choosing import Choosing, choose, choosing_options
from swavg.cli.options import SectionedCommand, read_paths
from swavg.cli.running import OUTPUT, Running, running_options


@click.command(cls=SectionedCommand)
@click.argument("checkpoints", nargs=-1, required=True, metavar="CKPT...")
@OUTPUT
@click.option(
    "--decay",
    type=float,
    metavar="D",
    help="Weight of what came before, per checkpoint (per step with --per-step).",
)
@click.option(
    "--half-life",
    metavar="H",
    help="2000steps or 3checkpoints: the weight halves over"
    " this distance. A bare number counts steps where they are known.",
)
@click.option("--span", metavar="S", help="As in pandas: decay 1 - 2/(S+1).")
@click.option("--per-step", is_flag=True, help="Count the distance between checkpoints in steps.")
@click.option(
    "--debias",
    is_flag=True,
    help="Start from zero and correct for it, instead of from the first checkpoint.",
)
@click.option(
    "--warmup",
    type=click.Choice(["tensorflow", "inverse-gamma", "yolo"]),
    help="Let the decay grow up to --decay, as these projects do.",
)
@click.option(
    "--resume",
    metavar="EMA",
    help="Go on from an EMA that swavg wrote, with the checkpoints after it.",
)
@click.option("-0", "--null", is_flag=True, help="Paths on stdin are separated by NUL.")
@choosing_options
@running_options
def ema(
    checkpoints: tuple[str, ...],
    output: str | None,
    decay: float | None,
    half_life: str | None,
    span: str | None,
    per_step: bool,
    debias: bool,
    warmup: str | None,
    resume: str | None,
    null: bool,
    choosing: Choosing,
    running: Running,
) -> None:
    """Exponential moving average of a series, oldest first.

    \b
    swavg ema ckpts/*.safetensors --decay 0.99 -o ema.safetensors
    swavg ema run/ --half-life 2000steps --dtype float32 -o ema.safetensors
    swavg ema run/ --decay 0.9 --resume ema.safetensors -o later.safetensors
    """
    where = running.where(output)
    from swavg import methods
    from swavg.cli._jobs import jobs_of

    series = choose(read_paths(checkpoints, null), choosing)
    how = methods.smoothing(
        series.steps,
        decay=decay,
        half_life=half_life,
        span=span,
        per_step=per_step,
        debias=debias,
        warmup=warmup,
        counting=series.unit,
    )
    notes = list(series.notes)
    if half_life is not None or span is not None:
        unit = f"{series.unit or 'step'}s" if how.per_step else "checkpoints"
        notes.append(f"counted in {unit}: the decay is {how.decay:.8g} per {unit[:-1]}")
    request = methods.ema(series, how, policy=running.arguments["policy"], resume=resume)
    running.do(jobs_of(request, [where], running.arguments), notes)
