"""Evaluating checkpoints by themselves, the best first: what ``swavg eval`` does, and ``swavg
sweep`` at its end."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from swavg.cli.scoring import MetricOptions, OutputScoring, ScoringOptions
from swavg.cli.survey import AGAIN, measured
from swavg.errors import InputError, OutputExistsError, SwavgError

if TYPE_CHECKING:
    from swavg.cli.averaging import Run
    from swavg.cli.executing import FactsOf
    from swavg.evaluation.evaluate import Module
    from swavg.evaluation.outputs import Outputs
    from swavg.evaluation.ranking import Entry, Measure, Ranking
    from swavg.evaluation.survey import Known, Survey, Value
    from swavg.formats.checkpoint import Checkpoint
    from swavg.planning.policy import Policy


@dataclass(frozen=True, eq=False, slots=True)
class Candidates:
    """What is to be evaluated, and by what."""

    paths: Sequence[str]
    steps: Sequence[int | None]
    opened: Sequence[Checkpoint]
    model: Module
    measure: Measure
    survey: Survey
    scoring: ScoringOptions

    @classmethod
    def of(
        cls,
        paths: Sequence[str],
        steps: Sequence[int | None],
        scoring: ScoringOptions,
        deciding: MetricOptions,
    ) -> Candidates:
        """Opens the checkpoints and builds the model."""
        from swavg.evaluation.ranking import survey_of

        measure = deciding.measure()
        opened = scoring.open(paths)
        model = scoring.build()
        survey = survey_of(paths, opened, measure, scoring.cache_key(model))
        return cls(paths, steps, opened, model, measure, survey, scoring)

    @property
    def batch_norm(self) -> str | None:
        """On which data its statistics are recomputed; None if they are not."""
        found = self.survey.cache_key["batch_norm"]
        return None if found is None else str(found)

    def outputs(
        self, csv: str, *, force: bool, anew: bool = False
    ) -> tuple[Outputs, dict[tuple[str, ...], Value]]:
        """The csv, checked before hours are spent, and what is known from it. One whose
        checkpoints are all evaluated now gains rows: that takes no ``force``."""
        from swavg.evaluation.outputs import Outputs
        from swavg.evaluation.ranking import known_values

        known, gains = ({}, False) if anew else known_values(csv, self.survey)
        outputs = Outputs(None, csv, force or gains, anew)
        outputs.check(self.survey, self.opened)
        return outputs, known

    def facts(self, outputs: Outputs) -> list[tuple[str, str]]:
        """What would be done."""
        from swavg.console.text import counted

        best = "lowest" if self.measure.mode == "min" else "highest"
        return [
            ("evaluates", f"{counted(len(self.paths), 'checkpoint')}: {', '.join(self.paths)}"),
            ("best", f"the {best} {self.measure.name}"),
            ("writes", outputs.csv),
        ]


def ranking(
    found: Candidates,
    outputs: Outputs,
    known: Known,
    notes: Sequence[str] = (),
    *,
    again: str = AGAIN,
    quiet: bool,
) -> Ranking:
    """Evaluate what is not ``known``, and publish the csv. If interrupted, says that it goes on
    ``again``, and how."""
    from swavg.evaluation.ranking import rank

    scorer = found.scoring.scorer(found.model, (), found.opened, found.measure)
    told = [*notes, *found.scoring.notes(found.model)]
    measuring = measured(
        found.survey,
        outputs,
        scorer,
        told,
        known=known,
        unit="checkpoints",
        again=again,
        quiet=quiet,
    )
    with measuring as (table, values):
        ranked = rank(found.measure, found.paths, found.steps, values)
        outputs.publish(found.survey, table)
    return ranked


def show(found: Candidates, ranking: Ranking) -> None:
    """The table and the best, on stderr."""
    from swavg.console import messages
    from swavg.console.ranking import ranking_table

    ranking_table(ranking)
    notes = ranking.notes
    if found.batch_norm is not None and ranking.best is not None:
        notes.append(recomputed_note(ranking.best.path, found.batch_norm, found.scoring))
    messages.notes(notes)


def recomputed_note(path: str, data: str, scoring: ScoringOptions) -> str:
    """On which data the statistics were computed with which a checkpoint was evaluated, and the
    command that writes them."""
    words = ["swavg", "bn", path, "--model", scoring.model, "--data", data]
    words += [] if scoring.batches is None else ["--batches", str(scoring.batches)]
    words += [] if scoring.key is None else ["--key", scoring.key]
    for prefix in scoring.strip_prefix:
        words += ["--strip-prefix", prefix]
    return (
        f"it was evaluated with batch-norm statistics recomputed on {data}; to have them in a file:"
        f" {shlex.join(words)}"
    )


def as_json(
    found: Candidates, outputs: Outputs, ranking: Ranking | None = None
) -> dict[str, object]:
    """What was found, or without a ranking what would be evaluated."""
    from swavg.evaluation.ranking import Entry
    from swavg.evaluation.survey import Value

    best = None if ranking is None else ranking.best
    entries = (
        [Entry(*each, Value()) for each in zip(found.paths, found.steps, strict=True)]
        if ranking is None
        else ranking.entries
    )
    return {
        "dry_run": ranking is None,
        "csv": outputs.csv,
        "metric": found.measure.name,
        "mode": found.measure.mode,
        "batch_norm": found.batch_norm,
        "best": None if best is None else best.path,
        "checkpoints": [{"path": e.path, "step": e.step, **scores(e)} for e in entries],
        "notes": [] if ranking is None else ranking.notes,
    }


def scores(entry: Entry) -> dict[str, object]:
    """What was found, as JSON has it."""
    value = entry.value
    own = {} if value.metric is None else {"metric": value.metric}
    return {"loss": value.loss, "error": value.error, **own, "examples": value.examples}


def evaluating_outputs(
    folder: str, scoring: OutputScoring, deciding: MetricOptions, policy: Policy, run: Run
) -> FactsOf | None:
    """What evaluates the outputs in ``folder`` as the options say; None if they ask for nothing.

    Raises UsageError, and OutputExistsError for a csv that is not to be replaced.
    """
    from swavg.evaluation.outputs import ROOM
    from swavg.evaluation.table import is_table
    from swavg.storage.destination import check_destination
    from swavg.storage.stores import is_url

    if not scoring.check(deciding):
        return None
    if run.part is not None:
        raise click.UsageError("--part publishes nothing to evaluate; name --model with --finish.")
    csv = "evaluation.csv" if is_url(folder) else os.path.join(folder, "evaluation.csv")
    replaces = run.force or (run.if_stale and is_table(csv))
    if not run.dry_run:
        try:
            check_destination(csv, ROOM, force=replaces)
        except OutputExistsError as error:
            if not is_table(csv):
                raise
            hint = "Use if_stale=True to go on with what is there, or force=True to replace it."
            raise OutputExistsError(csv, error.problem, hint=hint) from None
    prefixes = tuple(policy.strip_prefix)

    def evaluate(paths: Sequence[str]) -> dict[str, dict[str, object]]:
        from swavg.console import messages

        again = "the averages are written; the same command with --if-stale evaluates them"
        try:
            key = None if policy.key is None else _key_in(paths[0], policy.key)
            how = replace(scoring, device=run.device, key=key, strip_prefix=prefixes)
            found = Candidates.of(paths, [None] * len(paths), how, deciding)
            outputs, known = found.outputs(csv, force=replaces)
            made = ranking(found, outputs, known, again=again, quiet=run.quiet)
        except (SwavgError, click.UsageError):
            messages.notes([again])
            raise
        if not run.quiet:
            show(found, made)
        return {
            entry.path: {"evaluation": {**scores(entry), "best": entry is made.best}}
            for entry in made.entries
        }

    return evaluate


def _key_in(path: str, key: str) -> str | None:
    """The key under which an output has its tensors; None if it is a bare state dict."""
    from swavg.formats import open_checkpoint

    try:
        open_checkpoint(path, key=key)
    except InputError:
        return None
    return key
