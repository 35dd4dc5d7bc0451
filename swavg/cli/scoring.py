"""Whose loss is computed, on what: options of all commands that evaluate, and what they name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import click

from swavg.cli.options import Option, filled
from swavg.cli.values import COUNT, KEY_HELP, STRIP_HELP

if TYPE_CHECKING:
    from swavg.evaluation.evaluate import Module
    from swavg.evaluation.ranking import Measure
    from swavg.evaluation.score import Evaluate
    from swavg.evaluation.survey import Scorer
    from swavg.formats.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class ScoringOptions:
    """Whose loss is computed, and on what."""

    model: str
    data: str
    loss: str | None = None
    bn_data: str | None = None
    keep_bn: bool = False
    batches: int | None = None
    device: str = "cpu"
    key: str | None = None
    strip_prefix: tuple[str, ...] = ()

    def open(self, paths: Sequence[str]) -> list[Checkpoint]:
        from swavg.engine.average import open_all
        from swavg.planning.rename import renamed_with_model, rules

        # It may be the model alone whose names have the prefix.
        opened = open_all(paths, self.key)
        return renamed_with_model((), opened, rules(self.strip_prefix), must=False)[1]

    def check_batch_norm(self) -> None:
        if self.keep_bn and self.bn_data is not None:
            raise click.UsageError("--keep-bn recomputes nothing, so that --bn-data has no use.")

    def build(self) -> Module:
        """The model on its device. What the user's code prints goes to stderr."""
        from swavg.evaluation import loading

        self.check_batch_norm()
        if self.device != "cpu":
            from swavg.engine.kernels.torch import check_device

            check_device(self.device)
        with loading.prints_on_stderr():
            return loading.build_model(self.model).to(self.device)

    def weights(self, model: Module, checkpoints: Sequence[Checkpoint]) -> Sequence[Sequence[str]]:
        """The names of what counts as weights, as the opened checkpoints have them."""
        from swavg.evaluation.evaluate import parameter_names
        from swavg.planning.rename import rules
        from swavg.training.known_as import known_as

        names, _ = known_as(model, checkpoints, rules(self.strip_prefix))
        return [[names[name] for name in group] for group in parameter_names(model)]

    def recomputes(self, model: Module) -> bool:
        """Whether batch-norm statistics are computed for each evaluation."""
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
        which = {"key": self.key, "strip_prefix": [*self.strip_prefix]}
        return {
            "model": self.model,
            "data": self.data,
            "batches": self.batches,
            "loss": self.loss,
            "batch_norm": recomputed if self.recomputes(model) else None,
            "device": self.device,
            **{name: value for name, value in which.items() if value},
        }

    def notes(self, model: Module) -> list[str]:
        if not self.recomputes(model) or self.bn_data is not None:
            return []
        return [
            "batch-norm statistics are recomputed for each evaluation on --data; name training data"
            " with --bn-data, or take the checkpoints' own with --keep-bn"
        ]

    def evaluator(self, model: Module, measure: Measure | None = None) -> Evaluate:
        """What evaluates the model as it is, on the data, which the user's code makes."""
        from swavg.evaluation import loading
        from swavg.evaluation.batches import Passes
        from swavg.evaluation.evaluate import evaluate

        data = Passes(loading.build_batches(self.data), self.device, self.batches)
        bn_data = None
        if self.recomputes(model):
            bn_data = data
            if self.bn_data is not None:
                again = loading.build_batches(self.bn_data, "--bn-data")
                bn_data = Passes(again, self.device, self.batches)
        loss = None if self.loss is None else loading.load_callable(self.loss, "--loss")
        if measure is None:
            return partial(evaluate, model, data, loss, bn_data)
        return measure.checked(partial(evaluate, model, data, loss, bn_data, measure.function))

    def scorer(
        self,
        model: Module,
        sums: Sequence[Checkpoint],
        others: Sequence[Checkpoint] = (),
        measure: Measure | None = None,
    ) -> Callable[[], AbstractContextManager[Scorer]]:
        """What makes a scorer of sums of checkpoints, and of ``others`` by themselves, ready."""
        from swavg.evaluation.score import scoring

        return lambda: scoring(
            model, self.evaluator(model, measure), sums, others, self.strip_prefix
        )


@dataclass(frozen=True, slots=True)
class MetricOptions:
    """What decides which is best."""

    scored_by: str = "loss"
    better: Literal["min", "max"] | None = None

    def measure(self) -> Measure:
        """Loads the user's function."""
        from swavg.evaluation import loading
        from swavg.evaluation.ranking import measure_of

        with loading.prints_on_stderr():
            return measure_of(self.scored_by, self.better, "scored_by=")


SCORING = (
    Option("model", "--model", "A function that returns the model. Or the model itself:"
           " package.module:build or path/to/file.py:build.", "MODULE:NAME", daily=True),
    Option("data", "--data", "A function that returns batches. Or these: a DataLoader, a list.",
           "MODULE:NAME", daily=True),
    Option("loss", "--loss",
           "A function of outputs and target: the mean over a batch, or a loss for each example."
           " [default: the model's own, or cross-entropy]", "MODULE:NAME"),
    Option("bn_data", "--bn-data",
           "Training batches for batch-norm statistics. They are recomputed for each evaluation."
           " [default: those of --data]", "MODULE:NAME"),
    Option("keep_bn", "--keep-bn",
           "Take the checkpoints' batch-norm statistics instead (interpolated between them)."),
    Option("batches", "--batches", "Take only the first N batches of each. [default: all]", "N",
           COUNT),
    Option("device", "--device", "Where to run the model.", "cpu|cuda|cuda:N",
           environment="SWAVG_DEVICE"),
    Option("key", "--key", KEY_HELP, "PATH"),
    Option("strip_prefix", "--strip-prefix", STRIP_HELP, "PREFIX"),
)  # fmt: skip

METRIC = (
    Option("scored_by", "--metric",
           "What decides which is best. The loss, the error rate, or a function that is called as"
           " that of --loss, and whose mean over examples counts.", "loss|error|MODULE:NAME",
           daily=True),
    Option("better", "--mode",
           "Whether the lowest or the highest is best. [default: the lowest; of a function by its"
           " name]"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class OutputScoring(ScoringOptions):
    """Of a command that evaluates its outputs if a model and data are named."""

    model: str = ""
    data: str = ""

    def check(self, deciding: MetricOptions) -> bool:
        """Whether outputs are evaluated. UsageError for options that have no use without that."""
        if self.model and self.data:
            self.check_batch_norm()
            return True
        if self != OutputScoring() or deciding != MetricOptions():
            raise click.UsageError("To evaluate the outputs, give both --model and --data.")
        return False


_NOT_OF_OUTPUTS = ("device", "key", "strip_prefix")
_DAILY = ("model", "data")
_NAMES = {"scored_by": "--eval-metric", "better": "--eval-mode"}
# Beside options that say which checkpoints are averaged, and how.
output_scoring_options = filled(
    "scoring",
    OutputScoring,
    {
        "Evaluating": [
            replace(each, daily=each.field in _DAILY)
            for each in SCORING
            if each.field not in _NOT_OF_OUTPUTS
        ]
    },
)
output_metric_options = filled(
    "deciding",
    MetricOptions,
    {"Evaluating": [replace(each, names=_NAMES[each.field], daily=False) for each in METRIC]},
)
scoring_options = filled("scoring", ScoringOptions, {"Options": SCORING})
metric_options = filled("deciding", MetricOptions, {"Options": METRIC})
