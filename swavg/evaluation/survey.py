"""What is to be evaluated, point by point, and what was found: a row of the table for each."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from swavg import __version__
from swavg.evaluation.table import Table
from swavg.formats.checkpoint import Checkpoint
from swavg.short_repr import one_line
from swavg.storage.fingerprints import fingerprint
from swavg.storage.pool import Pool

Metric = Literal["loss", "error", "metric"]


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
"""The last columns of a table, by the fields of a value."""


@dataclass(frozen=True, slots=True)
class Point:
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
    """What was found of a model on so many ``examples``; None for what was not computed: the mean
    ``loss``, the share of wrong classes (``error``), and the mean of the user's own ``metric``."""

    loss: float | None = None
    error: float | None = None
    examples: int | None = None
    metric: float | None = None

    def of(self, metric: Metric) -> float:
        """NaN where it was not computed."""
        found = {"loss": self.loss, "error": self.error, "metric": self.metric}[metric]
        return math.nan if found is None else found


Scorer = Callable[[Point], Value]
"""Puts the weights of a point into the model, and evaluates it."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What is to be computed: ``cache_key`` says in plain values what the rows depend on."""

    cache_key: Mapping[str, object]
    columns: tuple[str, ...]
    points: tuple[Point, ...]

    @property
    def evaluations(self) -> int:
        return sum(point.scored for point in self.points)


def cache_key(
    survey: str, checkpoints: Sequence[tuple[str, Checkpoint]], more: Mapping[str, object]
) -> dict[str, object]:
    """Of a kind of ``survey`` of named ``checkpoints``, with ``more`` that its rows depend on.

    A checkpoint that was replaced is another: by a digest, and where that is of some places only
    by when its files were changed. InputError.
    """
    facts = []
    with Pool() as pool:
        for name, checkpoint in checkpoints:
            digest, whole = fingerprint(pool, checkpoint.sources)
            versions = [] if whole else [source.version for source in checkpoint.sources]
            changed = max((each for each in versions if isinstance(each, int)), default=None)
            facts.append(
                {"name": name, "bytes": checkpoint.size, "digest": digest, "changed": changed}
            )
    return {"survey": survey, "version": __version__, "checkpoints": facts, **more}


Known = Mapping[tuple[str, ...], Value]
"""Values that were found before, by the cells of their points."""


def run(
    survey: Survey,
    table: Table,
    score: Scorer,
    on_point: OnPoint | None = None,
    known: Known = MappingProxyType({}),
) -> list[Value]:
    """The values of all points: those in ``table``, and the others, which are added to it; what is
    ``known`` need not be scored."""
    points = survey.points
    if len(table.rows) > len(points):
        raise table.foreign(len(points) + 1)
    found = []
    for number, (point, row) in enumerate(zip(points, table.rows, strict=False), 1):
        value = parsed(survey, point, row)
        if value is None:
            raise table.foreign(number)
        found.append(value)
    if on_point is not None:
        on_point(len(found), len(points))
    for point in points[len(found) :]:
        value = known.get(point.cells) or (score(point) if point.scored else Value())
        measured = survey.columns[len(point.cells) :]
        cells = (number_text(getattr(value, name)) for name in measured)
        table.append(joined((*point.cells, *cells)))
        found.append(value)
        if on_point is not None:
            on_point(len(found), len(points))
    return found


def parsed(survey: Survey, point: Point, row: str) -> Value | None:
    """What a row says of a point; None if it is of another."""
    cells = next(csv.reader([row]), [])
    count = len(point.cells)
    if len(cells) != len(survey.columns) or tuple(cells[:count]) != point.cells:
        return None
    texts = dict(zip(survey.columns[count:], cells[count:], strict=True))
    examples = texts.pop("examples")
    try:
        numbers = {name: float(text) if text else None for name, text in texts.items()}
        return Value(examples=int(examples) if examples else None, **numbers)
    except ValueError:
        return None


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


def cell_of(name: str) -> str:
    """A name as the cell of a row: without line ends, and no two names are one."""
    return one_line(name.replace("\\", "\\\\"))
