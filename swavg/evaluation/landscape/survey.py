"""Going from point to point: weights into the model, its score, a row into the table."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from swavg import __version__
from swavg.errors import OutputError
from swavg.evaluation.landscape.table import Table
from swavg.formats.checkpoint import Checkpoint

if TYPE_CHECKING:
    from swavg.evaluation.evaluate import Module, Score

Metric = Literal["loss", "error"]


def scale(metric: Metric) -> float:
    """What values are multiplied with where they are shown: error rates are in percent."""
    return 100.0 if metric == "error" else 1.0


def axis_title(metric: Metric, subject: str | None = None) -> str:
    """What an axis of scaled values shows, and of which data."""
    noun = "error rate (%)" if metric == "error" else "loss"
    return noun if subject is None else f"{subject} {noun}"


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

    loss: float | None = None
    error: float | None = None
    examples: int | None = None

    def of(self, metric: Metric) -> float:
        """NaN where it was not computed."""
        found = self.loss if metric == "loss" else self.error
        return math.nan if found is None else found


Scorer = Callable[[GridPoint], Value]
"""Puts the weights of a point into the model, and evaluates it."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What is to be computed: ``cache_key`` says in plain values what the rows depend on."""

    cache_key: Mapping[str, object]
    columns: tuple[str, ...]
    points: tuple[GridPoint, ...]

    @property
    def evaluations(self) -> int:
        return sum(point.scored for point in self.points)


def cache_key(
    survey: str, checkpoints: Sequence[tuple[str, Checkpoint]], more: Mapping[str, object]
) -> dict[str, object]:
    """Of a kind of ``survey`` of named ``checkpoints``, with ``more`` that its rows depend on."""
    facts = [{"name": name, "bytes": checkpoint.size} for name, checkpoint in checkpoints]
    return {"survey": survey, "version": __version__, "checkpoints": facts, **more}


@contextmanager
def scoring(
    model: Module,
    evaluate: Callable[[], Score],
    checkpoints: Sequence[Checkpoint],
    others: Sequence[Checkpoint] = (),
    strip_prefix: Sequence[str] = (),
) -> Iterator[Scorer]:
    """A scorer of sums of ``checkpoints``, and of ``others`` by themselves, in the block.

    The model holds the weights of the point that was scored last. ``strip_prefix`` does not count
    in its names. Raises MismatchError if a tensor
    of the model is missing in a file or has another shape there.
    """
    from swavg.training.model_plan import ModelPlan

    with ExitStack() as files:
        sums, *alone = (
            files.enter_context(
                ModelPlan(model, members, strip_prefix=strip_prefix, allow_nonfinite=True)
            )
            for members in (checkpoints, *([each] for each in others))
        )

        def score(point: GridPoint) -> Value:
            if point.own is not None:
                alone[point.own].apply([1.0])
            else:
                assert point.coefficients is not None
                # They sum to 1 but for their rounding, which must not be an error.
                sums.apply(point.coefficients)
            found = evaluate()
            return Value(found.loss, found.error, found.examples)

        yield score


def run(
    survey: Survey, table: Table, score: Scorer, on_point: OnPoint | None = None
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
        value = score(point) if point.scored else Value()
        found_cells = map(number_text, (value.loss, value.error, value.examples))
        table.append(joined((*point.cells, *found_cells)))
        found.append(value)
        if on_point is not None:
            on_point(len(found), len(points))
    return found


def _parsed(point: GridPoint, row: str) -> Value | None:
    cells = next(csv.reader([row]), [])
    if len(cells) != len(point.cells) + len(VALUES) or tuple(cells[: -len(VALUES)]) != point.cells:
        return None
    try:
        loss, error = (None if cell == "" else float(cell) for cell in cells[-3:-1])
        return Value(loss, error, None if cells[-1] == "" else int(cells[-1]))
    except ValueError:
        return None


def _foreign(table: Table, number: int) -> OutputError:
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
