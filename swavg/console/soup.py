"""What a greedy soup tried."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from swavg.console.page import Cell, Column, Page, Row
from swavg.console.text import printable
from swavg.evaluation.tried import Tried


def tried(found: Sequence[Tried]) -> None:
    """A row for each checkpoint in the order in which they were tried, on stderr; last those
    without a score."""
    alone = {each.name: each.score for each in found if each.kept is None}
    rows = []
    for each in found:
        if each.kept is not None:
            cells: list[Cell] = [printable(each.name), _text(alone.pop(each.name))]
            cells += [_text(each.score), str(each.n), ("kept", "green") if each.kept else ""]
            rows.append(Row(cells, None if each.kept else "dim"))
    rows += [
        Row([printable(name), _text(score), "", "", ""], "dim") for name, score in alone.items()
    ]
    columns = [Column("checkpoint", folds=True), Column("alone", True), Column("soup", True)]
    columns += [Column("of", True), Column("")]
    Page(sys.stderr).table(columns, rows, framed=True)


def _text(score: float) -> str:
    return f"{score:.6g}"
