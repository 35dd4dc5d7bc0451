"""``swavg list``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from swavg.cli.options import Headed, SectionedCommand
from swavg.cli.printing import print_json, print_line
from swavg.cli.selection import Selection, discover, select, selected, selection_options
from swavg.cli.values import NULL, read_paths
from swavg.errors import InputError, RequestError, did_you_mean, with_article

if TYPE_CHECKING:
    from swavg.console.listing import Listed
    from swavg.series import Series


@click.command("list", cls=SectionedCommand)
@click.argument("paths", nargs=-1, metavar="DIR|CKPT...", type=click.Path())
@selection_options
@NULL
@click.option(
    "--paths",
    "only_paths",
    is_flag=True,
    help="Print the paths of what is chosen. Each on a line, or with -0 before a NUL.",
)
@click.option("--json", "as_json", cls=Headed, heading="Running", is_flag=True, help="Print JSON.")
def list_command(
    paths: tuple[str, ...], selection: Selection, null: bool, only_paths: bool, as_json: bool
) -> None:
    """Show the checkpoints of a run in step order, and what would be chosen.

    DIR is a folder of checkpoints, or has one in it; '-' reads paths from stdin. Steps come from
    the names, or from the checkpoints. With a metric, its course is drawn.

    \b
    swavg list runs/17
    swavg list runs/17 --best 3 --metric val_loss
    swavg list runs/17 --last 5 --every 1000 --metrics log.csv
    swavg list runs/17 --last 5 --paths -0 | xargs -0 du -h
    """
    from swavg.console import listing, messages
    from swavg.series import guess_mode, with_inner_metrics

    found = read_paths(paths, null=null)
    if not found:
        raise click.UsageError("Give a folder of checkpoints, or '-' to read paths from stdin.")
    if only_paths:
        _print_paths(selected(found, selection, one_for_each_step=False, choosing=True), null=null)
        return
    series = with_inner_metrics(discover(found, selection))
    chosen = select(series, selection) if selection.selects else None
    rows, unreadable = _rows(series, None if chosen is None else set(chosen.paths))
    notes = (*(series if chosen is None else chosen).notes, *unreadable)
    metrics = _metrics(series, selection.metric)
    if selection.metric is not None and selection.metric not in metrics:
        near = did_you_mean(selection.metric, metrics)
        missing = f"no checkpoint has {with_article(selection.metric)}"
        notes = (*notes, missing if near is None else f"{missing}. {near}")
    if as_json:
        print_json("list", _as_json(series, rows, notes, chosen))
        return
    shown = metrics[0] if metrics else None
    mode = selection.mode or (guess_mode(shown) if shown else None)
    listing.listing(rows, series.unit, metrics, shown, mode)
    messages.notes(notes)


def _print_paths(series: Series, *, null: bool) -> None:
    for path in series.paths:
        if "\n" in path and not null:
            # Whoever reads lines would take each of its two for a path.
            raise RequestError(f"{path!r} has a newline in its name.", hint="Use null=True.")
    for path in series.paths:
        print_line(path, end="\0" if null else "\n")


def _metrics(series: Series, first: str | None) -> Sequence[str]:
    """The metric ``first``, then losses and scores of evaluation, then what else there is."""

    def rank(name: str) -> tuple[bool, bool, bool]:
        lowered = name.lower()
        held_out = any(word in lowered for word in ("val", "eval", "dev", "cv", "test"))
        return name != first, not held_out, "loss" not in lowered

    return sorted(series.metric_names, key=rank)


def _rows(series: Series, chosen: set[str] | None) -> tuple[Sequence[Listed], Sequence[str]]:
    """A row for each snapshot, and what is wrong with those that cannot be read."""
    from swavg.console.listing import Listed
    from swavg.formats.parts import open_whole

    rows, problems = [], []
    for snapshot in series.snapshots:
        size: int | None = None
        dtypes: dict[str, int] | None = None
        try:
            checkpoint = open_whole(snapshot.path, shared=series.shared)
        except InputError as error:
            problems.append(str(error))
        else:
            size, dtypes = checkpoint.size, checkpoint.dtypes
        picked = None if chosen is None else snapshot.path in chosen
        rows.append(Listed(snapshot.path, snapshot.step, snapshot.metrics, size, dtypes, picked))
    return rows, problems


def _as_json(
    series: Series, rows: Sequence[Listed], notes: Sequence[str], chosen: Series | None
) -> dict[str, object]:
    return {
        "unit": series.unit,
        "checkpoints": [
            {
                "path": snapshot.path,
                "step": snapshot.step,
                "step_from": snapshot.step_from,
                "counts": dict(snapshot.counts),
                "size": row.size,
                "dtypes": None if row.dtypes is None else dict(row.dtypes),
                "metrics": dict(snapshot.metrics),
                "selected": row.chosen,
            }
            for snapshot, row in zip(series.snapshots, rows, strict=True)
        ],
        "selected": None if chosen is None else [*chosen.paths],
        "notes": [*notes],
    }
