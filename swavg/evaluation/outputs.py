"""Where a survey goes: a figure and a csv, checked before hours are spent, published at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swavg.errors import OutputError, RequestError
from swavg.evaluation.landscape import drawing
from swavg.evaluation.survey import Survey
from swavg.evaluation.table import Table, check_place, discard, finished_rows, publish
from swavg.formats.checkpoint import Checkpoint
from swavg.storage.destination import check_destination, destination, is_stream
from swavg.storage.protect import check_not_input
from swavg.storage.publish import new_file

ROOM = 1 << 20
"""What a figure or a csv may need; the disk is full long before, or it is not."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """``figure`` is None where none can be drawn. ``force`` replaces what exists; with ``anew`` a
    csv that is there already does not count."""

    figure: str | None
    csv: str
    force: bool = False
    anew: bool = False

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.csv,) if self.figure is None else (self.figure, self.csv)

    def check(self, survey: Survey, inputs: Sequence[Checkpoint]) -> None:
        """Raise OutputError or RequestError for what would fail at the end.

        A csv of this very survey is no obstacle: its figure can be drawn again, in another way.
        """
        if self.figure is not None:
            drawing.figure_format(self.figure)
            if destination(self.figure) == destination(self.csv):
                raise RequestError(f"the figure and the csv would both be {self.csv}.")
        for path in self.paths:
            if path == "-" or is_stream(path):
                raise OutputError(path, "is no place for a file", hint="Give a path of a file.")
            check_not_input(path, [(each.path, each.sources) for each in inputs])
            if path == self.csv:
                kept = self.force or self._made(survey)
                check_place(path, survey.cache_key, ROOM, force=kept)
            else:
                check_destination(path, ROOM, force=self.force)

    def _made(self, survey: Survey) -> bool:
        if self.anew:
            return False
        rows = finished_rows(self.csv, survey.cache_key, survey.columns)
        return rows is not None and len(rows) == len(survey.points)

    def publish(
        self, survey: Survey, table: Table, draw: Callable[[str], bytes] | None = None
    ) -> None:
        """Put both under their names; the unfinished table goes. ``draw`` makes a figure of a kind
        of file, such as ``png``."""
        drawn = None
        if self.figure is not None and draw is not None:
            drawn = draw(drawing.figure_format(self.figure))
        if not self._made(survey):
            publish(table, self.csv, force=self.force)
        if self.figure is not None and drawn is not None:
            with new_file(self.figure, force=self.force) as sink:
                sink.write(drawn)
        discard(table)


def outputs(figure: str | None, csv: str | None, stem: str, *, force: bool, anew: bool) -> Outputs:
    """The paths asked for, or ``stem`` with its suffixes here; the csv lies beside the figure.

    Raises MissingDependencyError where a figure was asked for and matplotlib is missing; without
    it there is no figure by default.
    """
    if figure is not None:
        drawing.figure_format(figure)
        drawing.require()
    elif drawing.available():
        figure = f"{stem}.png"
    beside = stem if figure is None else os.path.splitext(figure)[0]
    return Outputs(figure, csv or f"{beside}.csv", force, anew)
