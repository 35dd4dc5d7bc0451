"""What commands that evaluate point by point share: where the table goes, and the run; and what
``swavg landscape`` and ``swavg path`` do besides, with a figure."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NoReturn

import click

from swavg.cli.errors import print_error
from swavg.cli.options import Option, filled
from swavg.cli.printing import print_json, print_published
from swavg.cli.signals import exit_code

if TYPE_CHECKING:
    from swavg.console.progress import OnProgress
    from swavg.evaluation.outputs import Outputs
    from swavg.evaluation.survey import Known, Metric, Point, Scorer, Survey, Value
    from swavg.evaluation.table import Table

AGAIN = "the same command goes on from there"


@dataclass(frozen=True, slots=True)
class TableOptions:
    """Where the values go, and what is shown of them."""

    csv: str | None = None
    force: bool = False
    anew: bool = False
    dry_run: bool = False
    as_json: bool = False
    quiet: bool = False

    def show_plan(
        self, name: str, report: Mapping[str, object], facts: Sequence[tuple[str, str]]
    ) -> None:
        """What would be done, on stdout: the ``report``, or ``facts`` for people."""
        from swavg.console import survey as console

        if self.as_json:
            print_json(name, report)
        else:
            console.dry_run(facts)


@dataclass(frozen=True, slots=True)
class SurveyOptions(TableOptions):
    """What is drawn, and where."""

    metric: Literal["loss", "error", "both"] = "loss"
    subject: str | None = None
    labels: str | None = None
    output: str | None = None

    @property
    def metrics(self) -> tuple[Metric, ...]:
        if self.metric == "both":
            return "loss", "error"
        return ("error",) if self.metric == "error" else ("loss",)

    def outputs(self, stem: str) -> Outputs:
        from swavg.evaluation.outputs import outputs

        return outputs(self.output, self.csv, stem, force=self.force, anew=self.anew)

    def measuring(self) -> AbstractContextManager[OnProgress | None]:
        """Progress of reading how far checkpoints lie apart."""
        from swavg.console.progress import progress_bar

        return progress_bar("measuring", "bytes", shown=not self.quiet)

    def label(self, count: int, names: Sequence[str]) -> list[str]:
        """Labels for ``count`` points; what is not given is taken from ``names``."""
        from swavg.evaluation.survey import short

        if self.labels is None or self.labels == "names":
            return [short(name) for name in names]
        labels = [label.strip() for label in self.labels.split(",")]
        if len(labels) > count:
            raise click.UsageError(f"--labels names {len(labels)} points; there are {count}.")
        return [*labels, *map(short, names[len(labels) :])]

    def shows_chart(self) -> bool:
        """Whether a picture is shown on the terminal."""
        return not self.quiet and sys.stderr.isatty()

    def finish(
        self, name: str, outputs: Outputs, report: Mapping[str, object], notes: Sequence[str]
    ) -> None:
        """Say what is to be said and print the paths."""
        from swavg.console import messages

        if not self.quiet:
            missing = ["no figure: matplotlib is missing (pip install matplotlib)"]
            messages.notes([*notes, *(missing if outputs.figure is None else ())])
        print_published(name, [report], outputs.paths, as_json=self.as_json)


@contextmanager
def measured(
    survey: Survey,
    outputs: Outputs,
    scorer: Callable[[], AbstractContextManager[Scorer]],
    notes: Sequence[str] = (),
    *,
    known: Known = MappingProxyType({}),
    unit: Literal["points", "checkpoints"] = "points",
    again: str = AGAIN,
    quiet: bool,
) -> Iterator[tuple[Table, list[Value]]]:
    """The table, and the values of all points; the data are made if any is to be scored. If
    interrupted, ends the command, and says how it is done ``again``."""
    from swavg.console import messages
    from swavg.console.progress import progress_bar
    from swavg.evaluation import loading
    from swavg.evaluation.survey import run
    from swavg.evaluation.table import opened
    from swavg.storage.publish import parents_made

    if not quiet:
        messages.notes(notes)
    columns, anew, force = survey.columns, outputs.anew, outputs.force
    with (
        parents_made(outputs.csv),
        opened(outputs.csv, survey.cache_key, columns, anew=anew, force=force) as table,
    ):
        left = survey.points[len(table.rows) :]
        scored = [point for point in left if point.scored and point.cells not in known]
        if not quiet:
            messages.notes(
                stored(survey.evaluations - len(scored), survey.evaluations, outputs.csv)
            )
        try:
            # What the user's code prints goes to stderr.
            with (
                loading.prints_on_stderr(),
                scorer() if scored else nullcontext(_unneeded) as score,
                progress_bar("evaluating", unit, shown=not quiet) as on_point,
            ):
                values = run(survey, table, score, on_point, known)
        except KeyboardInterrupt as stopped:
            done = f"{len(table.rows)} of {len(survey.points)} {unit}"
            end_interrupted(stopped, done, str(table.path), again)
        yield table, values


def end_interrupted(
    stopped: KeyboardInterrupt, done: str, path: str, again: str = AGAIN
) -> NoReturn:
    """End the command: say what is ``done`` and kept at ``path``, and how it goes on."""
    from swavg.console.survey import interrupted

    interrupted(done, path, again)
    code = exit_code(stopped)
    if click.get_current_context().params.get("as_json"):
        print_error(code, "interrupted", f"interrupted: {done} are in {path}")
    raise click.exceptions.Exit(code) from None


def stored(count: int, total: int, csv: str) -> list[str]:
    """What is to be said where so many evaluations of all are not done again."""
    told = f"{count} of {total} evaluations are those of {csv}: code is known by its name only"
    return [told] if count else []


def _unneeded(point: Point) -> Value:
    raise AssertionError(f"{point} was known")


def nonfinite_notes(values: Mapping[str, Sequence[float]], points: str, shown: str) -> list[str]:
    """Notes on values, by metric, that are NaN or infinite: what they are ``points`` of, and how
    they are ``shown``."""
    notes = []
    for metric, found in values.items():
        wrong = sum(not math.isfinite(value) for value in found)
        if wrong:
            noun = "error rate" if metric == "error" else metric
            notes.append(
                f"{wrong} of {len(found)} {points} have no finite {noun} (NaN or Inf): {shown}"
            )
    return notes


_FIGURE = (
    Option("metric", "--metric", "What the figure shows. The csv has both.", daily=True),
    Option("subject", "--of", "What the data are, for the figure's labels: test, training.",
           "TEXT"),
    Option("labels", "--labels", "Names of the points in the figure; 'names': those of the files.",
           "A,B,..."),
    Option("output", "-o --output", "A .png, .svg or .pdf.", "FIGURE", click.Path(),
           daily=True),
)  # fmt: skip
_CSV = Option("csv", "--csv", "The values. [default: beside the figure]", "CSV", click.Path())
_TABLE = (
    Option("force", "--force", "Replace existing outputs.", daily=True),
    Option("anew", "--restart", "Compute everything anew."),
    Option("dry_run", "-n --dry-run", "Print what would be computed.", daily=True),
    Option("as_json", "--json", "Print the report as JSON."),
    Option("quiet", "-q --quiet", "Print errors only."),
)  # fmt: skip

survey_options = filled("options", SurveyOptions, {"Options": (*_FIGURE, _CSV, *_TABLE)})
table_options = filled(
    "options",
    TableOptions,
    {"Running": (replace(_CSV, help="The values. [default: evaluation.csv]"), *_TABLE)},
)
