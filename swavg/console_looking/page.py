"""Standard output: facts, and tables whose lines are laid out here rather than by rich, which would
take seconds for thousands of them; rich gives the styles of headings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swavg.console import printable

if TYPE_CHECKING:
    from rich.console import Console

MOST_ROWS = 20
_MOST_TEXT = 300
_GAP = "  "
_NARROWEST = 24


@contextmanager
def progress_bar(verb: str, shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr; None where stderr is no terminal or nothing is ``shown``."""
    if not shown or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    bar = Progress(
        TextColumn(verb),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(file=sys.stderr, highlight=False),
        transient=True,
    )
    task = bar.add_task(verb, total=None)
    with bar:
        yield lambda read, whole: bar.update(task, completed=read, total=whole)


class Page:
    """Standard output: headings with style, and lines as they are."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console: Console = Console(file=sys.stdout, highlight=False, emoji=False)
        self.width = self._console.width if sys.stdout.isatty() else None

    def line(self, text: str = "", style: str | None = None) -> None:
        if style is None:
            sys.stdout.write(text + "\n")
            return
        from rich.text import Text

        self._console.print(Text(text, style), soft_wrap=True)

    def fact(self, label: str, value: str) -> None:
        """A label and its value, folded behind it."""
        from rich.text import Text

        indent = " " * 12
        room = None if self.width is None else max(_NARROWEST, self.width - len(indent))
        first, *rest = _folded(value, room, " ")
        self._console.print(Text.assemble((f"{label:<12}", "bold"), first), soft_wrap=True)
        for text in rest:
            self.line(indent + text)


@dataclass(frozen=True, slots=True)
class Column:
    """``drop`` says which column goes first where there is no room (the lowest; 0 stays)."""

    heading: str
    right: bool = False
    drop: int = 0


@dataclass(slots=True)
class Row:
    cells: Sequence[str]
    style: str | None = None


def grid(page: Page, columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """A table whose first column folds where the page is narrow."""
    from rich.cells import cell_len

    widths = [
        max([len(column.heading), *(cell_len(row.cells[i]) for row in rows)])
        for i, column in enumerate(columns)
    ]
    shown = list(range(len(columns)))
    if page.width is not None:
        going = sorted((i for i in shown if columns[i].drop), key=lambda i: columns[i].drop)
        while going and _width(shown, widths) > page.width:
            shown.remove(going.pop(0))
        over = _width(shown, widths) - page.width
        widths[0] = max(min(widths[0], _NARROWEST), widths[0] - max(0, over))
    headings = (_set(columns[i].heading, widths[i], columns[i].right) for i in shown)
    page.line(_GAP.join(headings), "bold")
    page.line("─" * min(_width(shown, widths), page.width or 1 << 30), "dim")
    for row in rows:
        first, *rest = _folded(row.cells[0], widths[0], ".")
        cells = [first, *(row.cells[i] for i in shown[1:])]
        line = _GAP.join(
            _set(cell, widths[i], columns[i].right) for i, cell in zip(shown, cells, strict=True)
        )
        page.line(line.rstrip(), row.style)
        for text in rest:
            page.line(text, row.style)


def _width(shown: Sequence[int], widths: Sequence[int]) -> int:
    return sum(widths[i] for i in shown) + len(_GAP) * (len(shown) - 1)


def _set(text: str, width: int, right: bool) -> str:
    from rich.cells import cell_len

    room = " " * (width - cell_len(text))
    return room + text if right else text + room


def _folded(text: str, width: int | None, after: str) -> list[str]:
    """``text`` in lines of at most ``width`` cells, preferably cut ``after`` such a character."""
    from rich.cells import cell_len

    lines, rest = [], text
    while width is not None and cell_len(rest) > width:
        end, cells = 0, 0
        # At least one character, though it be too wide.
        while end < len(rest) and (end == 0 or cells + cell_len(rest[end]) <= width):
            cells += cell_len(rest[end])
            end += 1
        cut = rest.rfind(after, 0, end) + 1
        cut = cut if cut > end // 3 else end
        lines.append(rest[:cut])
        rest = ("  " if after == "." and width > 8 else "") + rest[cut:]
    return [*lines, rest]


def one_line(text: str) -> str:
    """``text`` without terminal codes or new lines, which could pass for rows."""
    return printable(text).replace("\n", "\\n")


def shortened(text: str) -> str:
    text = one_line(text)
    if len(text) <= _MOST_TEXT:
        return text
    return f"{text[:_MOST_TEXT]}... ({len(text):,} characters; --json shows all)"


def listed(names: Sequence[str], everything: bool) -> str:
    most = len(names) if everything else MOST_ROWS
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(one_line(name) for name in names[:most]) + more


def shape_text(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"
