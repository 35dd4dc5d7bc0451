"""A survey of losses: what it would do, and where it stopped."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from swavg.console.page import Page
from swavg.console.text import printable


def interrupted(done: int, total: int, path: str, noun: str = "points") -> None:
    """That the run can go on, on stderr."""
    page = Page(sys.stderr)
    text = f" {done} of {total} {noun} are in {printable(path)}"
    page.line(("interrupted", "yellow"), text, wrap=True)
    page.line("            the same command goes on from there")


def dry_run(facts: Sequence[tuple[str, str]]) -> None:
    """What would be computed, on stdout."""
    page = Page(sys.stdout)
    for label, value in facts:
        page.fact(label, printable(value), indent=13)
