"""What ``swavg landscape`` and ``swavg path`` share: options, the model and data, and the run."""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from swavg.formats.base import Checkpoint
    from swavg.landscape.outputs import Outputs
    from swavg.landscape.surface import Metric
    from swavg.landscape.survey import Survey, Value
    from swavg.landscape.table import Table
    from swavg.training.evaluate import Module

_OPTIONS = (
    click.option("--model", required=True, metavar="MODULE:NAME",
                 help="A function that returns the model, or the model: package.module:build or"
                 " path/to/file.py:build."),
    click.option("--data", required=True, metavar="MODULE:NAME",
                 help="A function that returns batches (a DataLoader, a list), or these."),
    click.option("--loss", metavar="MODULE:NAME",
                 help="A function of outputs and target: the mean over a batch, or a loss for each"
                 " example. [default: the model's own, or cross-entropy]"),
    click.option("--bn-data", metavar="MODULE:NAME",
                 help="Batches on which batch-norm statistics are recomputed at every point."
                 " [default: those of --data]"),
    click.option("--keep-bn", is_flag=True,
                 help="Interpolate the checkpoints' batch-norm statistics instead."),
    click.option("--batches", type=click.IntRange(min=1), metavar="N",
                 help="Take only the first N batches of each. [default: all]"),
    click.option("--metric", type=click.Choice(["loss", "error", "both"]), default="loss",
                 show_default=True, help="What the figure shows; the csv has both."),
    click.option("--of", "subject", metavar="TEXT",
                 help="What the data are, for the figure's labels: test, training."),
    click.option("--labels", metavar="A,B,...",
                 help="Names of the points in the figure; 'names': those of the files."),
    click.option("-o", "--output", metavar="FIGURE", help="A .png, .svg or .pdf."),
    click.option("--csv", metavar="CSV", help="The values. [default: beside the figure]"),
    click.option("--device", default="cpu", show_default=True, metavar="cpu|cuda|cuda:N",
                 help="Where to run the model."),
    click.option("--key", metavar="PATH",
                 help="Where the state dict lies in a .pt, such as model.state_dict."
                 " [default: found]"),
    click.option("--force", is_flag=True, help="Replace existing outputs."),
    click.option("--restart", is_flag=True, help="Compute all points anew."),
    click.option("-n", "--dry-run", is_flag=True, help="Print what would be computed."),
    click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
    click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Surveying:
    """The values of the shared options."""

    model: str
    data: str
    loss: str | None
    bn_data: str | None
    keep_bn: bool
    batches: int | None
    metric: str
    subject: str | None
    labels: str | None
    output: str | None
    csv: str | None
    device: str
    key: str | None
    force: bool
    restart: bool
    dry_run: bool
    as_json: bool
    quiet: bool

    @property
    def metrics(self) -> tuple[Metric, ...]:
        if self.metric == "both":
            return "loss", "error"
        return ("error",) if self.metric == "error" else ("loss",)

    def outputs(self, stem: str) -> Outputs:
        from swavg.landscape.outputs import outputs

        return outputs(self.output, self.csv, stem, force=self.force, anew=self.restart)

    def open(self, paths: Sequence[str]) -> list[Checkpoint]:
        from swavg.formats import open_checkpoint

        shared: dict[Any, Any] = {}
        return [open_checkpoint(path, key=self.key, shared=shared) for path in paths]

    def build(self) -> Module:
        """The model on its device. What the user's code prints goes to stderr."""
        from swavg.training import loading

        if self.keep_bn and self.bn_data is not None:
            raise click.UsageError("--keep-bn recomputes nothing, so that --bn-data has no use.")
        if self.device != "cpu":
            from swavg.kernels.torch import check_device

            check_device(self.device)
        with loading.prints_on_stderr():
            return loading.build_model(self.model).to(self.device)

    def weights(self, model: Module) -> Sequence[Sequence[str]]:
        """The names of what counts as weights."""
        from swavg.training.evaluate import parameter_names

        return parameter_names(model)

    def measuring(self) -> AbstractContextManager[Callable[[int, int], None] | None]:
        """Progress of reading how far checkpoints lie apart."""
        from swavg.console_looking.page import progress_bar

        return progress_bar("measuring", not self.quiet)

    def recomputes(self, model: Module) -> bool:
        """Whether batch-norm statistics are computed at every point."""
        from swavg.training.evaluate import has_running_statistics

        found = has_running_statistics(model)
        if self.bn_data is not None and not found:
            raise click.UsageError(
                "--bn-data has no use: the model has no batch-norm with running statistics."
            )
        return found and not self.keep_bn

    def asked(self, model: Module) -> dict[str, Any]:
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

    def name(self, count: int, names: Sequence[str]) -> list[str]:
        """Labels for ``count`` points; what is not given is taken from ``names``."""
        from swavg.landscape.survey import short

        if self.labels is None or self.labels == "names":
            return [short(name) for name in names]
        given = [label.strip() for label in self.labels.split(",")]
        if len(given) > count:
            raise click.UsageError(f"--labels names {len(given)} points; there are {count}.")
        return [*given, *map(short, names[len(given) :])]

    def run(
        self,
        survey: Survey,
        table: Table,
        model: Module,
        checkpoints: Sequence[Checkpoint],
        others: Sequence[Checkpoint] = (),
    ) -> list[Value] | None:
        """The values of all stops; None if it was interrupted, which has been said then."""
        from swavg import console_landscape
        from swavg.landscape.scoring import scoring
        from swavg.landscape.survey import run
        from swavg.training import loading
        from swavg.training.evaluate import Evaluator
        from swavg.training.passes import Passes

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
            evaluator = Evaluator(model, data, loss, bn_data)
            try:
                with (
                    scoring(model, evaluator, checkpoints, others) as score,
                    console_landscape.progress_bar(not self.quiet) as on_point,
                ):
                    return run(survey, table, score, on_point)
            except KeyboardInterrupt:
                done, total = len(table.rows), len(survey.stops)
                console_landscape.interrupted(done, total, str(table.path))
                return None

    def drawn(self) -> bool:
        """Whether a picture is shown on the terminal."""
        return not self.quiet and sys.stderr.isatty()

    @staticmethod
    def unmeasured(values: Mapping[str, Sequence[float]], points: str, shown: str) -> list[str]:
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

    def finish(self, outputs: Outputs, report: dict[str, Any], notes: Sequence[str]) -> None:
        """Say what is to be said and print the paths."""
        from swavg import console

        if not self.quiet:
            missing = ["no figure: matplotlib is missing (pip install 'swavg[plot]')"]
            console.warn([*notes, *(missing if outputs.figure is None else ())])
        if self.as_json:
            from swavg.looking.figures import jsonable

            click.echo(json.dumps(jsonable(report), indent=2, ensure_ascii=False))
            return
        for path in outputs.paths:
            click.echo(path)


def surveying_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as one argument, ``surveying``."""
    names = [entry.name for entry in fields(Surveying)]

    @functools.wraps(command)
    def bundled(**values: Any) -> Any:
        surveying = Surveying(**{name: values.pop(name) for name in names})
        return command(surveying=surveying, **values)

    decorated: Callable[..., Any] = bundled
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated
