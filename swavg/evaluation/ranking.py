"""Checkpoints and averages side by side: each evaluated by itself, the best first."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swavg.errors import RequestError
from swavg.evaluation.survey import (
    VALUES,
    Metric,
    Point,
    Survey,
    Value,
    cache_key,
    cell_of,
    parsed,
)
from swavg.evaluation.table import left_tables
from swavg.evaluation.user_objects import load_callable
from swavg.formats.checkpoint import Checkpoint
from swavg.series import guess_mode
from swavg.series.model import labels
from swavg.weights import Mode

if TYPE_CHECKING:
    from swavg.evaluation.evaluate import LossFunction


@dataclass(frozen=True, slots=True)
class Measure:
    """What decides which is best."""

    metric: Metric
    """The field of a value that has it."""
    name: str
    """``loss``, ``error``, or that of the user's function."""
    mode: Mode
    """Whether the lowest or the highest is best."""
    text: str | None = None
    """What names the user's function."""
    function: LossFunction | None = None
    """Of outputs and target; its mean over examples counts."""

    def of(self, found: Value) -> float:
        """RequestError if there is no error rate."""
        value: float | None = getattr(found, self.metric)
        if value is None:
            raise RequestError(
                "There is no error rate: the data have no classes that outputs can be compared to.",
                hint="Let the loss decide, or a function of outputs and target.",
            )
        return value

    def finite(self, found: Value) -> bool:
        """Whether it can be compared. Of outputs that are NaN a metric may be any number: with a
        loss that is NaN there is none."""
        return math.isfinite(self.of(found)) and not math.isnan(found.loss or 0.0)

    def checked(self, evaluate: Callable[[], Value]) -> Callable[[], Value]:
        """``evaluate``, with a RequestError at once where it does not say what is asked for."""

        def run() -> Value:
            found = evaluate()
            self.of(found)
            return found

        return run


def measure_of(text: str, better: Mode | None = None, option: str = "metric") -> Measure:
    """``loss``, ``error``, or the function that ``text`` names as ``package.module:name`` or
    ``path/to/file.py:name``.

    Without ``better`` the lowest loss and error are best; of a function its name decides. Raises
    RequestError, also where that says nothing.
    """
    given: dict[str, Metric] = {"loss": "loss", "error": "error"}
    if text in given:
        return Measure(given[text], text, better or "min")
    if ":" not in text:
        raise RequestError(f"{option} is loss, error or a function (MODULE:NAME), not '{text}'.")
    function = load_callable(text, option)
    name = text.rpartition(":")[2].rpartition(".")[2]
    mode = better or guess_mode(name)
    if mode is None:
        raise RequestError(
            f"'{name}' does not say whether the lowest or the highest is best.",
            hint="Say so with better='max' or better='min'.",
        )
    return Measure("metric", name, mode, text, function)


@dataclass(frozen=True, slots=True)
class Entry:
    """An evaluated checkpoint or average."""

    path: str
    step: int | None
    value: Value


@dataclass(frozen=True, slots=True)
class Ranking:
    """Entries, the best first; those without a finite value last."""

    measure: Measure
    entries: tuple[Entry, ...]

    @property
    def best(self) -> Entry | None:
        """None if nothing has a finite value."""
        first = self.entries[0]
        return first if self.measure.finite(first.value) else None

    @property
    def notes(self) -> list[str]:
        paths = [each.path for each in self.entries if not self.measure.finite(each.value)]
        return [f"last, for their values are NaN or infinite: {labels(paths)}"] if paths else []


def survey_of(
    paths: Sequence[str],
    checkpoints: Sequence[Checkpoint],
    measure: Measure,
    scores: Mapping[str, object],
) -> Survey:
    """A point for each checkpoint. ``scores`` says what scores depend on."""
    names = [cell_of(path) for path in paths]
    named = [*zip(names, checkpoints, strict=True)]
    key = cache_key("eval", named, {**scores, "metric": measure.text})
    own = () if measure.function is None else ("metric",)
    columns = ("checkpoint", *VALUES[:-1], *own, VALUES[-1])
    return Survey(key, columns, tuple(Point((name,), own=at) for at, name in enumerate(names)))


def known_values(path: str, survey: Survey) -> tuple[dict[tuple[str, ...], Value], bool]:
    """What tables that are there for ``path`` say of the checkpoints of ``survey``, as far as they
    were made as it is to be; and whether they are of nothing else."""
    points = {
        json.dumps(checkpoint): point
        for checkpoint, point in zip(_checkpoints(survey.cache_key), survey.points, strict=True)
    }
    settings = _settings(survey.cache_key)
    known, only = {}, []
    for key, rows in left_tables(path, survey.columns):
        checkpoints = _checkpoints(key) if _settings(key) == settings else []
        only.append(bool(checkpoints) and all(json.dumps(each) in points for each in checkpoints))
        for checkpoint, row in zip(checkpoints, rows, strict=False):
            point = points.get(json.dumps(checkpoint))
            value = None if point is None else parsed(survey, point, row)
            if point is not None and value is not None:
                known[point.cells] = value
    return known, bool(only) and all(only)


def _checkpoints(cache_key: Mapping[str, object]) -> Sequence[object]:
    found = cache_key.get("checkpoints")
    return found if isinstance(found, list) else []


def _settings(cache_key: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in cache_key.items() if name != "checkpoints"}


def rank(
    measure: Measure,
    paths: Sequence[str],
    steps: Sequence[int | None],
    values: Sequence[Value],
) -> Ranking:
    """RequestError if values lack what is measured."""
    entries = [Entry(*each) for each in zip(paths, steps, values, strict=True)]

    def place(entry: Entry) -> tuple[bool, float]:
        if not measure.finite(entry.value):
            return True, 0.0
        value = measure.of(entry.value)
        return False, value if measure.mode == "min" else -value

    return Ranking(measure, tuple(sorted(entries, key=place)))
