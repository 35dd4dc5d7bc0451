"""The progress bar of every command."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from swavg.console.text import size

OnProgress = Callable[[int, int | None], None]
"""Called with what is done and, where it is known, how much there is in all."""

_LINE_EVERY = 30.0


@contextmanager
def progress_bar(
    verb: str,
    unit: Literal["bytes", "batches", "points", "checkpoints", "evaluations"],
    *,
    shown: bool,
) -> Iterator[OnProgress | None]:
    """A bar on stderr with what is done and the time left; where stderr is no terminal, a line
    every 30 s. None where nothing is ``shown``."""
    if not shown:
        yield None
    elif sys.stderr.isatty():
        with _bar(verb, unit) as update:
            yield update
    else:
        yield _lines(verb, unit)


@contextmanager
def _bar(verb: str, unit: str) -> Iterator[OnProgress]:
    from rich import progress as rich

    from swavg.console.page import Page

    columns: list[rich.ProgressColumn] = [rich.TextColumn(verb), rich.BarColumn(bar_width=None)]
    if unit == "bytes":
        columns += [rich.DownloadColumn(), rich.TransferSpeedColumn()]
    else:
        columns += [rich.MofNCompleteColumn(), rich.TextColumn(unit), rich.TimeElapsedColumn()]
    columns += [rich.TextColumn("left")] if unit not in ("bytes", "batches") else []
    columns += [rich.TimeRemainingColumn(compact=True)]
    # A thread that redraws would rule out worker processes; bytes come often enough without one.
    redrawn = unit != "bytes"
    console = Page(sys.stderr).console
    bar = rich.Progress(*columns, console=console, transient=True, auto_refresh=redrawn)
    task: rich.TaskID | None = None
    drawn = -1.0

    def update(done: int, total: int | None) -> None:
        nonlocal task, drawn
        if task is None:
            # What an earlier run did says nothing about the speed of this one.
            task = bar.add_task(verb, total=total, completed=done)
        now = time.monotonic()
        # Ten times a second; more often only costs time.
        if redrawn or now - drawn >= 0.1:
            drawn = now
            bar.update(task, completed=done, total=total, refresh=not redrawn)

    with bar:
        yield update


def _lines(verb: str, unit: str) -> OnProgress:
    told = time.monotonic()

    def update(done: int, total: int | None) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= _LINE_EVERY:
            told = now
            from swavg.console.page import Page

            amounts = [size(n) if unit == "bytes" else f"{n:,}" for n in (done, total) if n]
            noun = "" if unit == "bytes" else f" {unit}"
            Page(sys.stderr).line(f"{verb} {' of '.join(amounts)}{noun}")

    return update
