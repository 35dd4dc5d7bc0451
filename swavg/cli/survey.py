"""What ``swavg landscape`` and ``swavg path`` share: options, the model and data, and the run."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import click

from swavg.cli.errors import print_error
from swavg.cli.options import Option, filled
from swavg.cli.printing import print_published
from swavg.cli.signals import exit_code
from swavg.cli.values import COUNT, KEY_HELP, STRIP_HELP

if TYPE_CHECKING:
    from swavg.console.progress import OnProgress
    from swavg.evaluation.evaluate import Module
    from swavg.evaluation.landscape.outputs import Outputs
    from swavg.evaluation.landscape.survey import Metric, Survey, Value
    from swavg.evaluation.landscape.table import Table
    from swavg.formats.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class SurveyOptions:
    """Whose loss is computed, on what, and where it goes."""

    model: str
    data: str
    loss: str | None = None
    bn_data: str | None = None
    keep_bn: bool = False
    batches: int | None = None
    metric: Literal["loss", "error", "both"] = "loss"
    subject: str | None = None
    labels: str | None = None
    output: str | None = None
    csv: str | None = None
    device: str = "cpu"
    key: str | None = None
    strip_prefix: tuple[str, ...] = ()
    force: bool = False
    anew: bool = False
    dry_run: bool = False
    as_json: bool = False
    quiet: bool = False

    @property
    def metrics(self) -> tuple[Metric, ...]:
        if self.metric == "both":
            return "loss", "error"
        return ("error",) if self.metric == "error" else ("loss",)

    def outputs(self, stem: str) -> Outputs:
        from swavg.evaluation.landscape.outputs import outputs

        return outputs(self.output, self.csv, stem, force=self.force, anew=self.anew)

    def open(self, paths: Sequence[str]) -> list[Checkpoint]:
        from swavg.engine.average import open_all
        from swavg.planning.rename import renamed_with_model, rules

        # It may be the model alone whose names have the prefix.
        opened = open_all(paths, self.key)
        return renamed_with_model((), opened, rules(self.strip_prefix), must=False)[1]

    def build(self) -> Module:
        """The model on its device. What the user's code prints goes to stderr."""
        from swavg.evaluation import loading

        if self.keep_bn and self.bn_data is not None:
            raise click.UsageError("--keep-bn recomputes nothing, so that --bn-data has no use.")
        if self.device != "cpu":
            from swavg.engine.kernels.torch import check_device

            check_device(self.device)
        with loading.prints_on_stderr():
            return loading.build_model(self.model).to(self.device)

    def weights(self, model: Module, checkpoints: Sequence[Checkpoint]) -> Sequence[Sequence[str]]:
        """The names of what counts as weights, as the opened checkpoints have them."""
        from swavg.evaluation.evaluate import parameter_names
        from swavg.planning.rename import renamed_with_model, rules

        groups = parameter_names(model)
        own = tuple(name for group in groups for name in group)
        names, _ = renamed_with_model(own, checkpoints, rules(self.strip_prefix))
        known_as = dict(zip(own, names, strict=True))
        return [[known_as[name] for name in group] for group in groups]

    def measuring(self) -> AbstractContextManager[OnProgress | None]:
        """Progress of reading how far checkpoints lie apart."""
        from swavg.console.progress import progress_bar

        return progress_bar("measuring", "bytes", shown=not self.quiet)

    def recomputes(self, model: Module) -> bool:
        """Whether batch-norm statistics are computed at every point."""
        from swavg.training.batchnorm import has_statistics

        found = has_statistics(model)
        if self.bn_data is not None and not found:
            raise click.UsageError(
                "--bn-data has no use: the model has no batch-norm with running statistics."
            )
        return found and not self.keep_bn

    def cache_key(self, model: Module) -> dict[str, Any]:
        """What the values depend on besides checkpoints and points."""
        recomputed = self.bn_data or self.data
        return {
            "model": self.model,
            "data": self.data,
            "batches": self.batches,
            "loss": self.loss,
            "batch_norm": recomputed if self.recomputes(model) else None,
            "device": self.device,
        }

    def notes(self, model: Module) -> list[str]:
        if not self.recomputes(model) or self.bn_data is not None:
            return []
        return [
            "batch-norm statistics are recomputed at every point on --data; name training data"
            " with --bn-data, or interpolate the checkpoints' own with --keep-bn"
        ]

    def label(self, count: int, names: Sequence[str]) -> list[str]:
        """Labels for ``count`` points; what is not given is taken from ``names``."""
        from swavg.evaluation.landscape.survey import short

        if self.labels is None or self.labels == "names":
            return [short(name) for name in names]
        labels = [label.strip() for label in self.labels.split(",")]
        if len(labels) > count:
            raise click.UsageError(f"--labels names {len(labels)} points; there are {count}.")
        return [*labels, *map(short, names[len(labels) :])]

    @contextmanager
    def measured(
        self,
        survey: Survey,
        outputs: Outputs,
        model: Module,
        checkpoints: Sequence[Checkpoint],
        others: Sequence[Checkpoint] = (),
    ) -> Iterator[tuple[Table, list[Value]]]:
        """The table, and the values of all points. If interrupted, says so and ends the command."""
        from swavg.console import messages
        from swavg.console import survey as console
        from swavg.evaluation.landscape.table import opened
        from swavg.storage.publish import parents_made

        if not self.quiet:
            messages.notes(self.notes(model))
        with (
            parents_made(outputs.csv),
            opened(
                outputs.csv, survey.cache_key, survey.columns, anew=self.anew, force=self.force
            ) as table,
        ):
            try:
                values = self._values(survey, table, model, checkpoints, others)
            except KeyboardInterrupt as stopped:
                done, total = len(table.rows), len(survey.points)
                console.interrupted(done, total, str(table.path))
                code = exit_code(stopped)
                if self.as_json:
                    text = f"interrupted: {done} of {total} points are in {table.path}"
                    print_error(code, "interrupted", text)
                raise click.exceptions.Exit(code) from None
            yield table, values

    def _values(
        self,
        survey: Survey,
        table: Table,
        model: Module,
        checkpoints: Sequence[Checkpoint],
        others: Sequence[Checkpoint],
    ) -> list[Value]:
        from swavg.console.progress import progress_bar
        from swavg.evaluation import loading
        from swavg.evaluation.batches import Passes
        from swavg.evaluation.evaluate import evaluate
        from swavg.evaluation.landscape.survey import run, scoring

        # What the user's code prints goes to stderr.
        with loading.prints_on_stderr():
            data = Passes(loading.build_batches(self.data), self.device, self.batches)
            bn_data = None
            if self.recomputes(model):
                bn_data = data
                if self.bn_data is not None:
                    again = loading.build_batches(self.bn_data, "--bn-data")
                    bn_data = Passes(again, self.device, self.batches)
            loss = None if self.loss is None else loading.load_callable(self.loss, "--loss")
            score_model = partial(evaluate, model, data, loss, bn_data)
            with (
                scoring(model, score_model, checkpoints, others, self.strip_prefix) as score,
                progress_bar("evaluating", "points", shown=not self.quiet) as on_point,
            ):
                return run(survey, table, score, on_point)

    def shows_chart(self) -> bool:
        """Whether a picture is shown on the terminal."""
        return not self.quiet and sys.stderr.isatty()

    @staticmethod
    def nonfinite_notes(
        values: Mapping[str, Sequence[float]], points: str, shown: str
    ) -> list[str]:
        """Notes on values, by metric, that are NaN or infinite: what they are ``points`` of, and
        how they are ``shown``."""
        notes = []
        for metric, found in values.items():
            wrong = sum(not math.isfinite(value) for value in found)
            if wrong:
                noun = "error rate" if metric == "error" else metric
                notes.append(
                    f"{wrong} of {len(found)} {points} have no finite {noun} (NaN or Inf): {shown}"
                )
        return notes

    def finish(
        self, name: str, outputs: Outputs, report: Mapping[str, object], notes: Sequence[str]
    ) -> None:
        """Say what is to be said and print the paths."""
        from swavg.console import messages

        if not self.quiet:
            missing = ["no figure: matplotlib is missing (pip install matplotlib)"]
            messages.notes([*notes, *(missing if outputs.figure is None else ())])
        print_published(name, [report], outputs.paths, as_json=self.as_json)


_OPTIONS = (
    Option("model", "--model", "A function that returns the model, or the model:"
           " package.module:build or path/to/file.py:build.", "MODULE:NAME"),
    Option("data", "--data", "A function that returns batches (a DataLoader, a list), or these.",
           "MODULE:NAME"),
    Option("loss", "--loss",
           "A function of outputs and target: the mean over a batch, or a loss for each example."
           " [default: the model's own, or cross-entropy]", "MODULE:NAME"),
    Option("bn_data", "--bn-data",
           "Batches on which batch-norm statistics are recomputed at every point."
           " [default: those of --data]", "MODULE:NAME"),
    Option("keep_bn", "--keep-bn",
           "Interpolate the checkpoints' batch-norm statistics instead."),
    Option("batches", "--batches", "Take only the first N batches of each. [default: all]", "N",
           COUNT),
    Option("metric", "--metric", "What the figure shows; the csv has both."),
    Option("subject", "--of", "What the data are, for the figure's labels: test, training.",
           "TEXT"),
    Option("labels", "--labels", "Names of the points in the figure; 'names': those of the files.",
           "A,B,..."),
    Option("output", "-o --output", "A .png, .svg or .pdf.", "FIGURE"),
    Option("csv", "--csv", "The values. [default: beside the figure]", "CSV"),
    Option("device", "--device", "Where to run the model.", "cpu|cuda|cuda:N",
           environment="SWAVG_DEVICE"),
    Option("key", "--key", KEY_HELP, "PATH"),
    Option("strip_prefix", "--strip-prefix", STRIP_HELP, "PREFIX"),
    Option("force", "--force", "Replace existing outputs."),
    Option("anew", "--restart", "Compute all points anew."),
    Option("dry_run", "-n --dry-run", "Print what would be computed."),
    Option("as_json", "--json", "Print the report as JSON."),
    Option("quiet", "-q --quiet", "Print errors only."),
)  # fmt: skip

survey_options = filled("options", SurveyOptions, {"Options": _OPTIONS})
