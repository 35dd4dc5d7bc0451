"""What people see: the progress bar, reports and tables. The only user of rich."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from swavg.errors import Difference
    from swavg.report import InputSummary, Progress, Report

_MOST_ROWS = 20


def size(count: float) -> str:
    """Bytes with three digits and a decimal unit: ``90.9 MB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.3g} {unit}"


def number(count: float) -> str:
    """A count with three digits: ``22.7 M``."""
    for unit in ("", " k", " M", " G", " T"):
        if abs(count) < 999.5 or unit == " T":
            break
        count /= 1000
    return f"{count:.0f}{unit}" if not unit or count >= 99.95 else f"{count:.3g}{unit}"


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    return Console(file=stream, highlight=False, soft_wrap=not stream.isatty())


@contextmanager
def progress_bar(shown: bool) -> Iterator[Callable[[Progress], None] | None]:
    """A bar on stderr with bytes, rate and time left; None where stderr is no terminal."""
    if not shown or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    bar = Progress(
        TextColumn("averaging"),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=_console(sys.stderr),
        transient=True,
    )
    task = bar.add_task("averaging", total=None)
    drawn = 0.0

    def update(progress: object) -> None:
        nonlocal drawn
        now: float = progress.seconds  # type: ignore[attr-defined]
        # The bar redraws ten times a second; telling it more often only costs time.
        if now - drawn >= 0.05:
            drawn = now
            bar.update(task, completed=progress.read, total=progress.total)  # type: ignore[attr-defined]

    with bar:
        yield update


def warn(notes: Sequence[str]) -> None:
    """Notes on stderr, a line each."""
    console = _console(sys.stderr)
    for note in notes:
        console.print(f"[yellow]note[/] {_plain(note)}")


def error(message: str, hint: str | None) -> None:
    """An error on stderr, with the way out on a line of its own."""
    console = _console(sys.stderr)
    console.print(f"[bold red]error[/] {_plain(message)}")
    if hint:
        console.print(f"      {_plain(hint)}")


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(printable(text))


def printable(text: str) -> str:
    """``text`` without terminal codes: what cannot be printed is escaped, lines stay."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def differences(found: Sequence[Difference], all_of_them: bool) -> None:
    """Everything in which checkpoints differ, on stderr: tensors that some lack, grouped by which
    do, and a table of shapes and dtypes."""
    console = _console(sys.stderr)
    lacking: dict[tuple[tuple[str, str], ...], list[str]] = {}
    others = []
    for difference in found:
        if difference.what == "missing":
            lacking.setdefault(difference.facts, []).append(difference.name)
        else:
            others.append(difference)
    for facts, names in lacking.items():
        without = [source for source, fact in facts if fact == "missing"]
        console.print(
            f"[bold]missing in {_plain(', '.join(_some(without)))}[/]"
            f" ({len(names)} tensor{'s' * (len(names) > 1)})"
        )
        for name in names if all_of_them else names[:_MOST_ROWS]:
            console.print(f"  {_plain(name)}")
        if not all_of_them and len(names) > _MOST_ROWS:
            console.print(f"  ... and {len(names) - _MOST_ROWS} more; -v shows all")
    if not others:
        return
    table = _table("tensor", "differs in", "what each input has")
    for difference in others if all_of_them else others[:_MOST_ROWS]:
        groups: dict[str, list[str]] = {}
        for source, fact in difference.facts:
            groups.setdefault(fact, []).append(source)
        facts_shown = "\n".join(
            f"{fact} in {', '.join(_some(sources))}" for fact, sources in groups.items()
        )
        table.add_row(_plain(difference.name), difference.what, _plain(facts_shown))
    console.print(table)
    if not all_of_them and len(others) > _MOST_ROWS:
        console.print(f"... and {len(others) - _MOST_ROWS} more; -v shows all.")


def _some(names: Sequence[str], most: int = 4) -> Sequence[str]:
    return names if len(names) <= most else (*names[: most - 1], f"{len(names) - most + 1} more")


def _table(*headings: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def plan(report: Report) -> None:
    """The plan of a run that has not been made, on stdout."""
    console = _console(sys.stdout)
    table = _inputs(report.inputs)
    console.print(table)
    for label, value in _facts(report):
        console.print(f"[bold]{label:<9}[/] {_plain(value)}")
    if report.treated:
        console.print(_treated(report.treated, all_of_them=True))


def _inputs(inputs: Sequence[InputSummary]) -> Table:
    table = _table("weight", "checkpoint", "size", "tensors", "dtypes")
    for column in (0, 2, 3):
        table.columns[column].justify = "right"
    for entry in inputs:
        total = sum(entry.dtypes.values()) or 1
        mix = ", ".join(
            f"{dtype} {share:.0%}" if 0.005 <= (share := count / total) < 0.995 else dtype
            for dtype, count in entry.dtypes.items()
        )
        table.add_row(
            f"{entry.weight:.6g}",
            _plain(entry.name),
            size(entry.size),
            str(entry.tensors),
            mix,
        )
    return table


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    counts = report.tensors
    parts = [f"{counts['averaged']} averaged"]
    parts += [f"{counts[kind]} {kind}" for kind in ("integer", "copied", "dropped") if counts[kind]]
    ties = f", {len(report.ties)} tied" if report.ties else ""
    yield "tensors", ", ".join(parts) + f" ({number(report.elements)} elements{ties})"
    yield "reads", size(report.read)
    files = f" in {report.files} files" if report.files > 1 else ""
    name = "standard output" if report.output == "-" else report.output
    yield "writes", f"{size(report.written)}{files} to {name} ({report.format})"
    yield "buffers", f"{size(report.memory)}, {report.threads} threads, on {report.device}"


def _treated(treated: Sequence[Mapping[str, str]], all_of_them: bool) -> Table:
    table = _table("tensor", "was", "because")
    for entry in treated if all_of_them else treated[:_MOST_ROWS]:
        table.add_row(_plain(entry["name"]), entry["how"], _plain(entry["why"]))
    if not all_of_them and len(treated) > _MOST_ROWS:
        table.add_row(f"... {len(treated) - _MOST_ROWS} more", "", "-v shows all")
    return table


def summary(report: Report, verbose: bool) -> None:
    """What a run did, on stderr: notes, exceptions, and one line with the figures."""
    warn(report.notes)
    console = _console(sys.stderr)
    if report.treated:
        console.print(_treated(report.treated, verbose))
    if report.differing_integers:
        rule = report.recipe.get("options", {}).get("integers", "last")
        names = ", ".join(_some(report.differing_integers, 99 if verbose else 4))
        warn([f"integer tensors that differ: took the {rule} of {names}"])
    if report.nonfinite:
        names = ", ".join(_some(report.nonfinite, 99 if verbose else 4))
        warn([f"NaN or Inf in the result: {names}"])
    if verbose:
        console.print(_inputs(report.inputs))
        for label, value in _facts(report):
            console.print(f"[bold]{label:<9}[/] {_plain(value)}")
    seconds = report.seconds or 0.0
    rate = f", {size(report.read / seconds)}/s read" if seconds > 0.01 else ""
    n = len(report.inputs)
    console.print(
        f"[green]averaged[/] {n} checkpoint{'s' * (n != 1)}:"
        f" {report.tensors['averaged']} tensors, {number(report.elements)} elements,"
        f" {size(report.written)} in {seconds:.2f} s{rate}"
    )
