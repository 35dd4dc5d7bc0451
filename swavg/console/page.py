"""A stream that people read: lines, facts and tables.

Lines are laid out here rather than by rich, which would take seconds for thousands of them; rich
gives styles.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

Span = str | tuple[str, str] | Text
"""Text, or text and its style."""
Cell = str | tuple[str, str]
_Place = tuple[int, "Column", int]

_WORD = re.compile(r"(?<=: )(?:swavg|pip|rm) .+|\S+")
_NARROWEST = 24
_LEAST = 6


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    heading: str
    right: bool = False
    """Whether its cells are set at the right."""
    folds: bool = False
    """Whether its cells are folded where there is no room."""
    drop: int = 0
    """Which column goes first where there is no room: the lowest; 0 stays."""


@dataclass(slots=True)
class Row:
    """A row of a table; a cell may have several lines, and a style of its own."""

    cells: Sequence[Cell]
    style: str | None = None


class Page:
    """Standard output or error; ``width`` is None where it is no terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.console = Console(file=stream, highlight=False, emoji=False)
        self.width = self.console.width if stream.isatty() else None

    def line(
        self, *spans: Span, style: str | None = None, wrap: bool = False, hang: int = 0
    ) -> None:
        """A line as it is; with ``wrap`` a terminal gets it broken between words, and never in one:
        a path that is copied from there stays whole. What follows is indented by ``hang``."""
        broken = wrap and self.width is not None
        if not broken and style is None and all(isinstance(span, str) for span in spans):
            self._stream.write("".join(map(str, spans)) + "\n")
            return
        text = Text.assemble(*spans, style=style or "")
        lines = _broken(text, self.width, hang) if broken and self.width else [text]
        for number, line in enumerate(lines):
            indented = Text(" " * hang).append_text(line) if number else line
            self.console.print(indented, soft_wrap=True)

    def fact(self, label: str, value: str, *, indent: int = 12) -> None:
        """A label and its value, folded behind it."""
        room = None if self.width is None else max(_NARROWEST, self.width - indent)
        first, *rest = _folded(value, room)
        self.line((f"{label:<{indent}}", "bold"), first)
        for text in rest:
            self.line(" " * indent + text)

    def table(
        self,
        columns: Sequence[Column],
        rows: Sequence[Row],
        *,
        title: str | None = None,
        gap: int = 2,
        framed: bool = False,
    ) -> None:
        """A table whose columns fold or go where the page is narrow; ``framed`` by white space,
        and then in 80 columns where there is no terminal."""
        room = self.console.width - 2 if framed else self.width
        least = _LEAST if framed else _NARROWEST
        layout = _fitted(columns, rows, gap, room, least)
        whole = sum(width for _, _, width in layout) + gap * (len(layout) - 1)
        edge = " " * framed
        if title is not None:
            self.line(title)
        if framed:
            self.line(" " * (whole + 2))
        headings = Row([column.heading for column in columns], "bold")
        self._row(headings, layout, " " * gap, edge)
        rule = "─" * whole if room is None else "─" * min(whole, room)
        self.line(f"{edge}{rule}{edge}", style=None if framed else "dim")
        for row in rows:
            self._row(row, layout, " " * gap, edge)
        if framed:
            self.line(" " * (whole + 2))

    def _row(self, row: Row, layout: Sequence[_Place], gap: str, edge: str) -> None:
        cells: list[tuple[list[str], str]] = []
        for i, column, width in layout:
            text, style = _plain(row.cells[i])
            room = width if column.folds else None
            cells.append(([p for line in text.split("\n") for p in _folded(line, room)], style))
        for at in range(max(len(lines) for lines, _ in cells)):
            spans: list[tuple[str, str]] = []
            for (_, column, width), (lines, style) in zip(layout, cells, strict=True):
                text = _set(lines[at] if at < len(lines) else "", width, column.right)
                spans += [(gap if spans else edge, ""), (text, style)]
            if any(style for _, style in cells):
                self.line(*spans, edge, style=row.style)
            else:
                text = "".join(text for text, _ in spans) + edge
                self.line(text if edge else text.rstrip(), style=row.style)


def _broken(text: Text, width: int, hang: int) -> Iterator[Text]:
    """``text`` in lines of whole words, at most ``width`` cells long; the room for all but the
    first is less by ``hang``. A command at the end of a line counts as a word."""
    for line in text.split("\n", allow_blank=True):
        ends: list[int] = []
        begun = 0
        for word in _WORD.finditer(line.plain):
            room = width - (hang if ends else 0)
            before = line.plain[begun : word.start()]
            if before.strip() and cell_len(before + word[0]) > room:
                begun = word.start()
                ends.append(begun)
        for part in line.divide(ends):
            part.rstrip()
            yield part


def _fitted(
    columns: Sequence[Column], rows: Sequence[Row], gap: int, room: int | None, least: int
) -> list[_Place]:
    """The columns that are shown: the place of each, and its width."""
    widths = [cell_len(column.heading) for column in columns]
    for row in rows:
        for i, cell in enumerate(row.cells):
            widths[i] = max(widths[i], *map(cell_len, _plain(cell)[0].split("\n")))
    shown = list(range(len(columns)))

    def over() -> int:
        whole = sum(widths[i] for i in shown) + gap * (len(shown) - 1)
        return 0 if room is None else whole - room

    going = sorted((i for i in shown if columns[i].drop), key=lambda i: columns[i].drop)
    while going and over() > 0:
        shown.remove(going.pop(0))
    for _ in range(over()):
        widest = max((i for i in shown if columns[i].folds), key=lambda i: widths[i], default=None)
        if widest is None or widths[widest] <= least:
            break
        widths[widest] -= 1
    return [(i, columns[i], widths[i]) for i in shown]


def _plain(cell: Cell) -> tuple[str, str]:
    return (cell, "") if isinstance(cell, str) else cell


def _set(text: str, width: int, right: bool) -> str:
    room = " " * (width - cell_len(text))
    return room + text if right else text + room


def _folded(text: str, width: int | None) -> list[str]:
    """``text`` in lines of at most ``width`` cells, cut after a space or a dot if there is one."""
    lines, rest = [], text
    while width is not None and cell_len(rest) > width:
        end, cells = 0, 0
        # At least one character, though it be too wide.
        while end < len(rest) and (end == 0 or cells + cell_len(rest[end]) <= width):
            cells += cell_len(rest[end])
            end += 1
        ends = (rest.rfind(after, 0, end + (after == " ")) + 1 for after in " .")
        cut = next((place for place in ends if place > end // 3), end)
        lines.append(rest[:cut].rstrip())
        rest = ("  " if rest[cut - 1] == "." and width > 8 else "") + rest[cut:]
    return [*lines, rest]
