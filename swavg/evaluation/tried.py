"""What was tried for a soup: the rows of its csv, read again or written as they are found."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass

from swavg.evaluation.survey import joined, number_text
from swavg.evaluation.table import Table

COLUMNS = ("tried", "checkpoint", "n", "score", "kept")

OnEvaluation = Callable[[int, int], None]
"""Called with the evaluations done so far, and in all; first with those that were there already."""


@dataclass(frozen=True, slots=True)
class Tried:
    """An evaluation: of a checkpoint ``alone``, or of the mean of those kept before and it."""

    name: str
    n: int
    """Of how many the mean was."""
    score: float
    kept: bool | None
    """None where it was alone."""


class Log:
    """What was tried: the rows of a table, first those that are there."""

    def __init__(self, table: Table, count: int, on_evaluation: OnEvaluation | None) -> None:
        self._table, self._count, self._tell = table, count, on_evaluation
        self._total = 2 * count - 1
        self.tried: list[Tried] = []
        self._tell_done(len(table.rows))

    def score(self, evaluate: Callable[[], float]) -> float:
        """What the next row says, or is to say."""
        at = len(self.tried)
        if at == len(self._table.rows):
            return float(evaluate())
        try:
            return float(next(csv.reader([self._table.rows[at]]))[COLUMNS.index("score")])
        except (ValueError, IndexError, StopIteration):
            raise self._table.foreign(at + 1) from None

    def add(self, tried: Tried) -> None:
        """The next row. OutputError if it is there, and says something else."""
        kept = "" if tried.kept is None else "yes" if tried.kept else "no"
        kind = "alone" if tried.kept is None else "soup"
        score = number_text(tried.score)
        row, at = joined((kind, tried.name, str(tried.n), score, kept)), len(self.tried)
        if at == len(self._table.rows):
            self._table.append(row)
        elif self._table.rows[at] != row:
            raise self._table.foreign(at + 1)
        self.tried.append(tried)
        self._tell_done(len(self.tried))

    def expect(self, candidates: int) -> None:
        """So many rows of candidates come, the first of which needs no evaluation."""
        self._total = self._count + candidates - 1

    def check_end(self) -> None:
        """OutputError if there are more rows."""
        if len(self._table.rows) > len(self.tried):
            raise self._table.foreign(len(self.tried) + 1)

    def _tell_done(self, rows: int) -> None:
        if self._tell is not None:
            self._tell(rows - (rows > self._count), self._total)
