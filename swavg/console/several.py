"""What several outputs have to say, said once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from swavg.console.text import some
from swavg.engine.report import Report

T = TypeVar("T")


def said_once(
    reports: Sequence[Report], texts: Callable[[Report], Iterable[str]], *, counts: bool = False
) -> list[str]:
    """Each of the ``texts`` once: behind the names of the outputs that it is of, unless these are
    all; with ``counts`` behind how many that are."""
    return [
        of_which(those, reports, counts=counts) + text for text, those in grouped(reports, texts)
    ]


def grouped(
    reports: Sequence[Report], values: Callable[[Report], Iterable[T]]
) -> Iterable[tuple[T, list[Report]]]:
    """Each of the ``values`` once, with the reports that have it."""
    found: dict[T, list[Report]] = {}
    for report in reports:
        for value in dict.fromkeys(values(report)):
            found.setdefault(value, []).append(report)
    return found.items()


def of_which(those: Sequence[Report], reports: Sequence[Report], *, counts: bool) -> str:
    """``those`` of the reports, before what is said of them: ``in all 3: ``."""
    if len(those) < len(reports):
        return f"{names_of(those)}: "
    if not counts or len(reports) < 2:
        return ""
    return "in both: " if len(reports) == 2 else f"in all {len(reports)}: "


def names_of(reports: Sequence[Report]) -> str:
    """The names of their outputs, in the folder that they share."""
    return ", ".join(some([os.path.basename(report.output.rstrip("/")) for report in reports]))
