"""A survey of losses: what it would do, and where it stopped."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from swavg.console.page import Page
from swavg.console.text import printable


def interrupted(done: str, path: str, again: str) -> None:
    """That the run can go on, on stderr."""
    page = Page(sys.stderr)
    text = f" {done} are in {printable(path)}"
    page.line(("interrupted", "yellow"), text, wrap=True)
    page.line(f"            {again}")


def dry_run(facts: Sequence[tuple[str, str]]) -> None:
    """What would be computed, on stdout."""
    page = Page(sys.stdout)
    for label, value in facts:
        page.fact(label, printable(value), indent=13)
