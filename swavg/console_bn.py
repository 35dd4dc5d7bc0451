"""What ``swavg bn`` shows: batches done, and how far the statistics moved."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from swavg.console import printable, warn

if TYPE_CHECKING:
    from rich.console import Console

    from swavg.training.moved import Quantiles
    from swavg.training.recalibrate import Recalibration


def _console() -> Console:
    from rich.console import Console

    return Console(file=sys.stderr, highlight=False, emoji=False,
                   soft_wrap=not sys.stderr.isatty())  # fmt: skip


@contextmanager
def progress_bar(shown: bool) -> Iterator[Callable[[int, int | None], None] | None]:
    """A bar on stderr with the batches done and, where their number is known, the time left; None
    where stderr is no terminal."""
    if not shown or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("recomputing"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("batches"),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        console=_console(),
        transient=True,
    )
    task = bar.add_task("recomputing", total=None)
    with bar:
        yield lambda done, total: bar.update(task, completed=done, total=total)


def summary(done: Recalibration) -> None:
    """Notes, what was recomputed on what, and how far it moved, on stderr."""
    from rich.markup import escape

    warn(done.notes)
    seen = _count(done.batches, "batch", "batches")
    if done.examples is not None:
        seen += f" ({_count(done.examples, 'example', 'examples')})"
    console = _console()
    console.print(
        f"[green]recomputed[/] the statistics of"
        f" {_count(done.layers, 'batch-norm layer', 'batch-norm layers')} of"
        f" {escape(printable(done.input))} on {seen} in {done.seconds:.2f} s"
    )
    parts = []
    if done.moved.variance is not None:
        parts.append(f"variances are {_spread(done.moved.variance)} times what they were")
    if done.moved.mean is not None:
        parts.append(f"means moved by {_spread(done.moved.mean)} standard deviations")
    if parts:
        console.print(f"           {'; '.join(parts)} (median; 5 to 95 % of channels)")


def _spread(quantiles: Quantiles) -> str:
    low, median, high = quantiles
    return f"{median:.3g} ({low:.3g} to {high:.3g})"


def _count(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"
