"""The progress of every command."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from swavg.console.pace import Pace, Unit

OnProgress = Callable[[int, int | None], None]
"""Called with what is done and, where it is known, how much there is in all."""

_LINE_EVERY = 30.0


@contextmanager
def progress_bar(verb: str, unit: Unit, *, shown: bool) -> Iterator[OnProgress | None]:
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
def _bar(verb: str, unit: Unit) -> Iterator[OnProgress]:
    from rich import progress as rich
    from rich.table import Column
    from rich.text import Text

    from swavg.console.page import Page

    pace = Pace(unit)

    class PaceColumn(rich.ProgressColumn):
        def render(self, task: rich.Task) -> Text:
            return Text(pace.text(time.monotonic()))

    # Only the bar gives way where there is no room.
    bar_column = rich.BarColumn(bar_width=None, table_column=Column(ratio=1))
    columns = (rich.TextColumn(verb), bar_column, PaceColumn(Column(no_wrap=True)))
    # A thread that redraws would rule out worker processes; bytes come often enough without one.
    redrawn = unit != "bytes"
    console = Page(sys.stderr).console
    bar = rich.Progress(
        *columns, console=console, transient=True, auto_refresh=redrawn, expand=True
    )
    task: rich.TaskID | None = None
    drawn = -1.0

    def update(done: int, total: int | None) -> None:
        nonlocal task, drawn
        now = time.monotonic()
        pace.note(done, total, now)
        if task is None:
            task = bar.add_task(verb, total=total, completed=done)
        # Ten times a second; more often only costs time.
        if redrawn or now - drawn >= 0.1:
            drawn = now
            bar.update(task, completed=done, total=total, refresh=not redrawn)

    with bar:
        yield update


def _lines(verb: str, unit: Unit) -> OnProgress:
    pace = Pace(unit)
    told = time.monotonic()

    def update(done: int, total: int | None) -> None:
        nonlocal told
        now = time.monotonic()
        pace.note(done, total, now)
        if now - told >= _LINE_EVERY:
            told = now
            from swavg.console.page import Page

            Page(sys.stderr).line(f"{verb} {pace.text(now)}")

    return update
