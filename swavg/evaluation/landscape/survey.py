"""Going from point to point: weights into the model, its score, a row into the table."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from swavg.errors import OutputError
from swavg.evaluation.landscape import table as tables

OnPoint = Callable[[int, int], None]
"""Called with the points done so far, and in all; first with those that were there already."""

VALUES = ("loss", "error", "examples")
"""The last columns of every table."""


@dataclass(frozen=True, slots=True)
class GridPoint:
    """A row of a survey: its first ``cells``, and the weights to be scored: a sum of the survey's
    checkpoints with these ``coefficients``, or the checkpoint ``own``; neither if only the place
    matters."""

    cells: tuple[str, ...]
    coefficients: tuple[float, ...] | None = None
    own: int | None = None

    @property
    def scored(self) -> bool:
        return self.coefficients is not None or self.own is not None


@dataclass(frozen=True, slots=True)
class Value:
    """What was found at a point; None for what was not computed. ``error`` is a share of 1."""

    loss: float | None
    error: float | None
    examples: int | None


class Scorer(Protocol):
    """Puts the weights of a point into the model; its loss, error rate and count of examples."""

    def __call__(self, point: GridPoint, /) -> Value: ...


@dataclass(frozen=True, slots=True)
class Survey:
    """What is to be computed: ``cache_key`` says in plain values what the rows depend on."""

    cache_key: Mapping[str, object]
    columns: tuple[str, ...]
    points: tuple[GridPoint, ...]

    @property
    def evaluations(self) -> int:
        return sum(point.scored for point in self.points)


def made_already(survey: Survey, path: str | os.PathLike[str]) -> bool:
    """Whether a whole table of this survey lies at ``path``."""
    rows = tables.finished_rows(path, survey.cache_key, survey.columns)
    return rows is not None and len(rows) == len(survey.points)


def run(
    survey: Survey, table: tables.Table, score: Scorer, on_point: OnPoint | None = None
) -> list[Value]:
    """The values of all points: those in ``table``, and the others, which are added to it."""
    points = survey.points
    if len(table.rows) > len(points):
        raise _foreign(table, len(points) + 1)
    found = []
    for number, (point, row) in enumerate(zip(points, table.rows, strict=False), 1):
        value = _parsed(point, row)
        if value is None:
            raise _foreign(table, number)
        found.append(value)
    if on_point is not None:
        on_point(len(found), len(points))
    for point in points[len(found) :]:
        value = score(point) if point.scored else Value(None, None, None)
        table.append(joined((*point.cells, *map(number_text, _cells(value)))))
        found.append(value)
        if on_point is not None:
            on_point(len(found), len(points))
    return found


def _cells(value: Value) -> tuple[float | int | None, ...]:
    return value.loss, value.error, value.examples


def _parsed(point: GridPoint, row: str) -> Value | None:
    cells = next(csv.reader([row]), [])
    if len(cells) != len(point.cells) + len(VALUES) or tuple(cells[: -len(VALUES)]) != point.cells:
        return None
    try:
        loss, error = (None if cell == "" else float(cell) for cell in cells[-3:-1])
        return Value(loss, error, None if cells[-1] == "" else int(cells[-1]))
    except ValueError:
        return None


def _foreign(table: tables.Table, number: int) -> OutputError:
    return OutputError(
        table.path,
        f"row {number} is not the one that belongs there: the file was changed",
        hint="Use anew=True to compute everything again, or give csv= another path.",
    )


def joined(cells: Sequence[str]) -> str:
    """A line of csv."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def number_text(value: float | int | None) -> str:
    """The shortest text that reads back as the same number; empty for None."""
    if value is None:
        return ""
    if isinstance(value, float) and math.isnan(value):
        # A NaN's sign says nothing.
        return "nan"
    return repr(value)


def short(name: str) -> str:
    """A checkpoint's name without the suffix of its format, as figures show it."""
    for suffix in (".safetensors", ".pth.tar", ".pth", ".pt", ".ckpt", ".bin"):
        if name.endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def one_line(name: str) -> str:
    """A name without line ends, which would end a row."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
