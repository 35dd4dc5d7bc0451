"""``swavg list``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from swavg.cli.choosing import Choosing, choosing_options, find, pick
from swavg.cli.options import SectionedCommand, read_paths

if TYPE_CHECKING:
    from swavg.console_series import Row
    from swavg.series import Series


@click.command(cls=SectionedCommand)
@click.argument("paths", nargs=-1, metavar="DIR|CKPT...")
@choosing_options
@click.option("-0", "--null", is_flag=True, help="Paths on stdin are separated by NUL.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list(paths: tuple[str, ...], choosing: Choosing, null: bool, as_json: bool) -> None:
    """Show the checkpoints of a training run in step order, and what options would choose.

    DIR is a folder of checkpoints (one level deep); '-' reads paths from stdin. Steps come from
    the names, or from the checkpoints. With a metric, its course is drawn.

    \b
    swavg list runs/17
    swavg list runs/17 --best 3 --metric val_loss
    swavg list runs/17 --last 5 --every 1000 --metrics log.csv
    """
    from swavg import console, console_series
    from swavg.series import guess_mode, with_inner_metrics

    found = read_paths(paths, null)
    if not found:
        raise click.UsageError("Give a folder of checkpoints, or '-' to read paths from stdin.")
    series = with_inner_metrics(find(found, choosing))
    chosen = pick(series, choosing) if choosing.selects else None
    rows, unreadable = _rows(series, None if chosen is None else set(chosen.paths))
    notes = (*(series if chosen is None else chosen).notes, *unreadable)
    metrics = _metrics(series, choosing)
    if choosing.metric is not None and choosing.metric not in metrics:
        notes = (*notes, f"no checkpoint has a {choosing.metric}")
    if as_json:
        click.echo(json.dumps(_as_json(series, rows, notes, chosen), indent=2, ensure_ascii=False))
        return
    shown = metrics[0] if metrics else None
    mode = choosing.mode or (guess_mode(shown) if shown else None)
    console_series.listing(rows, series.unit, metrics, shown, mode)
    console.warn(notes)


def _metrics(series: Series, choosing: Choosing) -> Sequence[str]:
    """The asked metric first, then losses and scores of evaluation, then what else there is."""

    def rank(name: str) -> tuple[bool, bool, bool]:
        lowered = name.lower()
        held_out = any(word in lowered for word in ("val", "eval", "dev", "cv", "test"))
        return name != choosing.metric, not held_out, "loss" not in lowered

    return sorted(series.metric_names, key=rank)


def _rows(series: Series, chosen: set[str] | None) -> tuple[Sequence[Row], Sequence[str]]:
    """A row for each snapshot, and what is wrong with those that cannot be read."""
    from swavg.console_series import Row
    from swavg.errors import InputError
    from swavg.formats import open_checkpoint

    shared: dict[Any, Any] = {}
    rows, problems = [], []
    for snapshot in series.snapshots:
        size: int | None = None
        dtypes: dict[str, int] | None = None
        try:
            checkpoint = open_checkpoint(snapshot.path, shared=shared)
        except InputError as error:
            problems.append(str(error))
        else:
            size, dtypes = checkpoint.size, {}
            for tensor in checkpoint.tensors.values():
                name = tensor.spec.dtype.name
                dtypes[name] = dtypes.get(name, 0) + tensor.spec.numel
        picked = None if chosen is None else snapshot.path in chosen
        rows.append(Row(snapshot.path, snapshot.step, snapshot.metrics, size, dtypes, picked))
    return rows, problems


def _as_json(
    series: Series, rows: Sequence[Row], notes: Sequence[str], chosen: Series | None
) -> dict[str, Any]:
    return {
        "unit": series.unit,
        "snapshots": [
            {
                "path": snapshot.path,
                "step": snapshot.step,
                "step_from": snapshot.step_from,
                "counts": dict(snapshot.counts),
                "size": row.size,
                "dtypes": None if row.dtypes is None else dict(row.dtypes),
                # JSON has no NaN.
                "metrics": {
                    name: value if math.isfinite(value) else None
                    for name, value in snapshot.metrics.items()
                },
                "selected": row.chosen,
            }
            for snapshot, row in zip(series.snapshots, rows, strict=True)
        ],
        "selected": None if chosen is None else [*chosen.paths],
        "notes": [*notes],
    }
