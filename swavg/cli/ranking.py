"""Evaluating checkpoints by themselves, the best first: what ``swavg eval`` does, and ``swavg
sweep`` at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swavg.cli.scoring import MetricOptions, ScoringOptions
from swavg.cli.survey import measured

if TYPE_CHECKING:
    from swavg.evaluation.evaluate import Module
    from swavg.evaluation.outputs import Outputs
    from swavg.evaluation.ranking import Entry, Measure, Ranking
    from swavg.evaluation.survey import Survey
    from swavg.formats.checkpoint import Checkpoint


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

    def outputs(self, csv: str, *, force: bool, anew: bool = False) -> Outputs:
        """The csv, checked before hours are spent."""
        from swavg.evaluation.outputs import Outputs

        outputs = Outputs(None, csv, force, anew)
        outputs.check(self.survey, self.opened)
        return outputs

    def explain(self, outputs: Outputs) -> None:
        """What would be done, on stdout."""
        from swavg.console import survey as console

        best = "lowest" if self.measure.mode == "min" else "highest"
        console.dry_run(
            [
                ("evaluates", f"{len(self.paths)} checkpoints: {', '.join(self.paths)}"),
                ("best", f"the {best} {self.measure.name}"),
                ("writes", outputs.csv),
            ]
        )


def ranking(
    found: Candidates, outputs: Outputs, notes: Sequence[str] = (), *, quiet: bool
) -> Ranking:
    """Evaluate what is not in the csv yet, and publish that."""
    from swavg.evaluation.ranking import rank

    scorer = found.scoring.scorer(found.model, (), found.opened, found.measure)
    told = [*notes, *found.scoring.notes(found.model)]
    with measured(found.survey, outputs, scorer, told, unit="checkpoints", quiet=quiet) as (
        table,
        values,
    ):
        ranked = rank(found.measure, found.paths, found.steps, values)
        outputs.publish(found.survey, table)
    return ranked


def show(ranking: Ranking) -> None:
    """The table and the best, on stderr."""
    from swavg.console import messages
    from swavg.console.ranking import ranking_table

    ranking_table(ranking)
    messages.notes(ranking.notes)


def as_json(ranking: Ranking) -> dict[str, object]:
    best = ranking.best
    return {
        "metric": ranking.measure.name,
        "mode": ranking.measure.mode,
        "best": None if best is None else best.path,
        "checkpoints": [{"path": e.path, "step": e.step, **scores(e)} for e in ranking.entries],
        "notes": ranking.notes,
    }


def scores(entry: Entry) -> dict[str, object]:
    """What was found, as JSON has it."""
    value = entry.value
    own = {} if value.metric is None else {"metric": value.metric}
    return {"loss": value.loss, "error": value.error, **own, "examples": value.examples}
