"""What people see: the progress bar, reports and tables. The only user of rich."""

from __future__ import annotations

import shlex
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

    return Console(file=stream, highlight=False, emoji=False, soft_wrap=not stream.isatty())


@contextmanager
def progress_bar(shown: bool) -> Iterator[Callable[[Progress], None] | None]:
    """A bar on stderr with bytes, rate and time left; None where stderr is no terminal."""
    if not shown or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("averaging"),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=_console(sys.stderr),
        transient=True,
        # A thread that redraws would rule out worker processes.
        auto_refresh=False,
    )
    task = bar.add_task("averaging", total=None)
    drawn = -1.0

    def update(progress: Progress) -> None:
        nonlocal drawn
        now = progress.seconds
        # Ten times a second; more often only costs time.
        if now - drawn >= 0.1:
            drawn = now
            bar.update(task, completed=progress.read, total=progress.total, refresh=True)

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
    # The terminal may break the line: a path that is copied from there stays whole.
    console.print(f"[bold red]error[/] {_plain(message)}", soft_wrap=True)
    if hint:
        console.print(f"      {_plain(hint)}", soft_wrap=True)


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
    console.print(_inputs(report.inputs))
    for label, value in (*_facts(report), *_shape_of(report)):
        console.print(f"[bold]{label:<9}[/] {_plain(value)}")
    if report.treated:
        console.print(_treated(report.treated, all_of_them=True))


_BAR = 12
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def bar(share: float, width: int = _BAR) -> str:
    """A bar of block characters, ``share`` (0 to 1) of ``width`` columns long."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _inputs(inputs: Sequence[InputSummary]) -> Table:
    """The inputs with their weights; what all have in common stands once, in the title."""
    measured = any(entry.distance is not None for entry in inputs)
    mixes = [_mix(entry) for entry in inputs]
    alike = (
        len(inputs) > 1
        and len({(entry.tensors, *mix) for entry, mix in zip(inputs, mixes, strict=True)}) == 1
    )
    headings = ["weight", "", "checkpoint", *(("distance", "cosine") if measured else ()), "size"]
    table = _table(*headings, *(() if alike else ("tensors", "dtypes")))
    if alike:
        count = _count(inputs[0].tensors, "tensor")
        table.title = f"{len(inputs)} checkpoints of {count}, {', '.join(mixes[0])}"
        table.title_justify = "left"
        table.title_style = ""
    for column in table.columns:
        if column.header != "checkpoint" and column.header != "dtypes":
            column.no_wrap = True
        if column.header in ("weight", "size", "tensors", "distance", "cosine"):
            column.justify = "right"
    largest = max((abs(entry.weight) for entry in inputs), default=0.0) or 1.0
    for entry, mix in zip(inputs, mixes, strict=True):
        colour = "red" if entry.weight < 0 else "cyan"
        measures = (_measure(entry.distance), _measure(entry.cosine)) if measured else ()
        table.add_row(
            f"{entry.weight:.4g}",
            f"[{colour}]{bar(abs(entry.weight) / largest)}[/]",
            _plain(entry.name),
            *measures,
            size(entry.size),
            *(() if alike else (str(entry.tensors), ", ".join(mix))),
        )
    return table


def _mix(entry: InputSummary) -> tuple[str, ...]:
    total = sum(entry.dtypes.values()) or 1
    return tuple(
        f"{dtype} {share:.0%}" if 0.005 <= (share := count / total) < 0.995 else dtype
        for dtype, count in entry.dtypes.items()
    )


def _measure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _shape_of(report: Report) -> Iterator[tuple[str, str]]:
    """The effective number of checkpoints and the half-life of the weights."""
    from swavg.errors import RequestError
    from swavg.weights import effective_number, half_life_of

    numbers = [entry.weight for entry in report.inputs]
    if len(numbers) < 2:
        return
    try:
        effective = effective_number(numbers)
        half = half_life_of(numbers)
    except RequestError:
        return
    yield (
        "weights",
        f"as {effective:.3g} equal checkpoints (1/sum w^2); half of the weight lies in the"
        f" newest {half:.3g}",
    )


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    counts = report.tensors
    parts = [f"{counts['averaged']} averaged"]
    parts += [
        f"{counts[kind]} {kind}"
        for kind in ("pooled", "integer", "copied", "dropped")
        if counts[kind]
    ]
    ties = f", {len(report.ties)} tied" if report.ties else ""
    yield "tensors", ", ".join(parts) + f" ({number(report.elements)} elements{ties})"
    yield "reads", size(report.read)
    files = f" in {report.files} files" if report.files > 1 else ""
    name = "standard output" if report.output == "-" else report.output
    yield "writes", f"{size(report.written)}{files} to {name} ({report.format})"
    yield "buffers", f"{size(report.memory)}, {report.threads} workers, on {report.device}"


def _treated(treated: Sequence[Mapping[str, str]], all_of_them: bool) -> Table:
    """Tensors by what became of them and why: a row for those that share both, or one each."""
    table = _table("tensor", "was", "because")
    groups: dict[tuple[str, str], list[str]] = {}
    for entry in treated:
        groups.setdefault((entry["how"], entry["why"]), []).append(entry["name"])
    rows = [
        ("\n".join(names if all_of_them else _some(names)), how, why)
        for (how, why), names in groups.items()
    ]
    for names, how, why in rows if all_of_them else rows[:_MOST_ROWS]:
        table.add_row(_plain(names), how, _plain(why))
    if not all_of_them and len(rows) > _MOST_ROWS:
        table.add_row(f"... and {len(rows) - _MOST_ROWS} more reasons", "", "-v shows all")
    return table


def summary(reports: Sequence[Report], verbose: bool) -> None:
    """What a run did, on stderr: notes, exceptions, and one line per output with the figures."""
    console = _console(sys.stderr)
    first = reports[0]
    warn(list(dict.fromkeys(note for report in reports for note in report.notes)))
    for report in reports:
        _exceptions(report, verbose)
        for warning in report.warnings:
            console.print(f"[yellow]warning[/] {_plain(warning)}")
        if verbose:
            console.print(_inputs(report.inputs))
            for label, value in (*_facts(report), *_shape_of(report)):
                console.print(f"[bold]{label:<9}[/] {_plain(value)}")
    seconds = first.seconds or 0.0
    for report in reports:
        n = len(report.inputs)
        name = f" {_plain(report.output)}:" if len(reports) > 1 else ":"
        rate = (
            f", {size(report.read / seconds)}/s read" if seconds > 0.01 and len(reports) < 2 else ""
        )
        console.print(
            f"[green]averaged[/] {_count(n, 'checkpoint')}{name}"
            f" {_count(report.tensors['averaged'], 'tensor')}, {number(report.elements)}"
            f" element{'s' * (report.elements != 1)},"
            f" {size(report.written)} in {seconds:.2f} s{rate}"
        )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _exceptions(report: Report, verbose: bool) -> None:
    # Tensors that were pooled were asked for, all of them.
    treated = [entry for entry in report.treated if verbose or entry["how"] != "pooled"]
    if treated:
        _console(sys.stderr).print(_treated(treated, verbose))
    most = 99 if verbose else 4
    if report.differing_integers:
        rule = report.recipe.get("options", {}).get("integers", "last")
        names = ", ".join(_some(report.differing_integers, most))
        warn([f"integer tensors that differ: took the {rule} of {names}"])
    if report.nonfinite:
        warn([f"NaN or Inf in the result: {', '.join(_some(report.nonfinite, most))}"])
    averages = sorted(name for name in report.running_statistics)
    if averages:
        warn(
            [
                f"batch-norm statistics were averaged ({', '.join(_some(averages, 2))}): before"
                f" judging the result recompute them with: swavg bn {_named(report.output)}"
                " --model ... --data ..."
            ]
        )
    if report.tensors["pooled"]:
        layers = _count(report.tensors["pooled"], "batch-norm layer")
        warn(
            [
                f"statistics of {layers} were pooled: they describe the activations of the inputs,"
                f" not of their average; with data: swavg bn {_named(report.output)} --model ..."
                " --data ..."
            ]
        )


def _named(output: str) -> str:
    return "OUT" if output == "-" else shlex.quote(output)
