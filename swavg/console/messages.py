"""Notes, warnings and errors on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from swavg.console.page import Column, Page, Row
from swavg.console.text import MOST_ROWS, counted, printable, some
from swavg.errors import Difference

_HANG = len("error ")
_SAID: ContextVar[set[str] | None] = ContextVar("said", default=None)


@contextmanager
def no_repetition() -> Iterator[None]:
    """Within, a note or warning that was shown is not shown again."""
    token = _SAID.set(set())
    try:
        yield
    finally:
        _SAID.reset(token)


def notes(texts: Sequence[str]) -> None:
    """What one may like to know, a line each."""
    _tagged("note", texts)


def warnings(texts: Sequence[str]) -> None:
    """What may make the result useless, a line each."""
    _tagged("warning", texts)


def _tagged(tag: str, texts: Sequence[str]) -> None:
    page = Page(sys.stderr)
    said = _SAID.get()
    for text in texts:
        if said is not None:
            if text in said:
                continue
            said.add(text)
        page.line((tag, "yellow"), f" {printable(text)}", wrap=True, hang=len(tag) + 1)


def error(message: str, hint: str | None) -> None:
    """An error, with the way out on a line of its own, and so each command of it."""
    page = Page(sys.stderr)
    page.line(("error", "bold red"), f" {printable(message)}", wrap=True, hang=_HANG)
    if hint:
        first, *commands = printable(hint).split("\n")
        page.line(f"{'':{_HANG}}{first}", wrap=True, hang=_HANG)
        for line in commands:
            # What is copied from there stays whole.
            page.line(f"{'':{_HANG}}{line}")


def differences(found: Sequence[Difference], *, everything: bool) -> None:
    """Everything in which checkpoints differ: tensors that some lack, grouped by which do, and a
    table of shapes and dtypes."""
    page = Page(sys.stderr)
    lacking: dict[tuple[tuple[str, str], ...], list[str]] = {}
    others = []
    for difference in found:
        if difference.what == "missing":
            lacking.setdefault(difference.facts, []).append(difference.name)
        else:
            others.append(difference)
    for facts, names in lacking.items():
        without = ", ".join(some([source for source, fact in facts if fact == "missing"]))
        page.line((f"missing in {printable(without)}", "bold"),
                  f" ({counted(len(names), 'tensor')})", wrap=True)  # fmt: skip
        for name in names if everything else names[:MOST_ROWS]:
            page.line(f"  {printable(name)}")
        if not everything and len(names) > MOST_ROWS:
            page.line(f"  ... and {len(names) - MOST_ROWS} more; -v shows all")
    if not others:
        return
    rows = []
    for difference in others if everything else others[:MOST_ROWS]:
        groups: dict[str, list[str]] = {}
        for source, fact in difference.facts:
            groups.setdefault(fact, []).append(source)
        each = "\n".join(f"{fact} in {', '.join(some(names))}" for fact, names in groups.items())
        rows.append(Row([printable(difference.name), difference.what, printable(each)]))
    columns = [Column(h, folds=True) for h in ("tensor", "differs in", "what each input has")]
    page.table(columns, rows, gap=3, framed=True)
    if not everything and len(others) > MOST_ROWS:
        page.line(f"... and {len(others) - MOST_ROWS} more; -v shows all.")
