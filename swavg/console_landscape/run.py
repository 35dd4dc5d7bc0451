"""The run of a survey: what it would do, its progress, and where it stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from swavg.console import _console, _plain


@contextmanager
def progress_bar(shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar of points on stderr with the time left; None where stderr is no terminal."""
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
        TextColumn("evaluating"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("points"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        console=_console(sys.stderr),
        transient=True,
    )
    task = None

    def update(done: int, total: int) -> None:
        nonlocal task
        if task is None:
            # Points of an earlier run say nothing about the speed of this one.
            task = bar.add_task("evaluating", total=total, completed=done)
        bar.update(task, completed=done)

    with bar:
        yield update


def interrupted(done: int, total: int, path: str) -> None:
    """That the run can go on, on stderr."""
    console = _console(sys.stderr)
    console.print(f"[yellow]interrupted[/] {done} of {total} points are in {_plain(path)}")
    console.print("            the same command goes on from there")


def dry_run(facts: Sequence[tuple[str, str]]) -> None:
    """What would be computed, on stdout."""
    console = _console(sys.stdout)
    for label, value in facts:
        console.print(f"[bold]{label:<12}[/] {_plain(value)}")


def printed(name: str) -> str:
    from swavg.console import printable

    return printable(name).replace("\n", "\\n")


def values_text(loss: float | None, error: float | None) -> str:
    parts = [] if loss is None else [f"loss {loss:.4g}"]
    parts += [] if error is None else [f"error {error:.2%}"]
    return "  ".join(parts)
