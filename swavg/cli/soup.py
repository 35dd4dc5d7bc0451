"""``swavg soup``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, NamedTuple

import click
from click.core import ParameterSource

from swavg.cli.averaging import Run, averaging_command, output_option, output_path
from swavg.cli.executing import execute_and_report
from swavg.cli.options import Headed, filled
from swavg.cli.ranking import recomputed_note
from swavg.cli.scoring import METRIC, SCORING, MetricOptions, OutputScoring
from swavg.cli.selection import Selection, recorded_selection_options, selected
from swavg.cli.survey import end_interrupted, stored
from swavg.cli.values import NULL, read_paths
from swavg.planning.policy import Policy

if TYPE_CHECKING:
    from swavg.evaluation.soup import ScoreOf, Search, Soup
    from swavg.weights import Mode


class _Scores(NamedTuple):
    """What gives a checkpoint its score, and which score is best."""

    evaluate: ScoreOf
    mode: Mode
    depends_on: Mapping[str, object]
    notes: list[str]


_WITHOUT = (
    # A candidate is made of the one before it; --key is among the options of the model.
    "strict", "missing", "integers", "lora", "rename", "strip_prefix", "key", "digest",
    # It goes on by itself, and is made on this machine.
    "device", "engine", "address", "part", "finish", "proceed",
)  # fmt: skip
_EVALUATING = "Evaluating"
_METRIC = [
    replace(option, help=option.help.replace("function by", "function or KEY by"))
    for option in METRIC
]


@averaging_command(without=_WITHOUT)
@click.argument("checkpoints", nargs=-1, metavar="RUN|CKPT...", type=click.Path())
@output_option("soup")
@click.option(
    "--evaluate",
    metavar="CMD",
    help="A command that prints the score of {}. The path of a checkpoint is put for {}.",
)
@click.option(
    "--json-key",
    cls=Headed,
    metavar="KEY",
    help="CMD prints JSON, with the score under this key, such as eval.loss. [default: the score"
    " is the last line]",
)
@click.option(
    "--strictly",
    cls=Headed,
    is_flag=True,
    help="Keep only what makes the soup better, as the paper's code does; not what makes it no"
    " worse, as the paper says.",
)
@click.option(
    "--csv",
    cls=Headed,
    metavar="CSV",
    type=click.Path(),
    help="What was tried, with its scores. [default: beside the output]",
)
@click.option("--restart", "anew", cls=Headed, is_flag=True, help="Evaluate everything anew.")
@NULL
@recorded_selection_options
@filled("scoring", OutputScoring, {_EVALUATING: SCORING})
@filled("metric", MetricOptions, {_EVALUATING: _METRIC})
def soup(
    checkpoints: tuple[str, ...],
    output: str | None,
    evaluate: str | None,
    json_key: str | None,
    strictly: bool,
    csv: str | None,
    anew: bool,
    null: bool,
    selection: Selection,
    scoring: OutputScoring,
    metric: MetricOptions,
    policy: Policy,
    run: Run,
) -> None:
    """The average of those checkpoints whose average scores best (a greedy soup).

    Each checkpoint is evaluated by itself. Then, best first, each is kept if the mean with it
    scores no worse than without it (Wortsman et al. 2022). What --model and --data name is the
    user's code, and is run; so is CMD, by the shell, with the path of a checkpoint or of a
    candidate: a float32 checkpoint in the format of the first. An interrupted soup goes on when it
    is called again.

    \b
    swavg soup run/ --last 5 --evaluate 'python eval.py {}' --mode max
    swavg soup a.pt b.pt --evaluate 'python eval.py {} --json' --json-key val_loss
    swavg soup a.pt b.pt c.pt --model train:build_model --data train:val_loader
    """
    paths = read_paths(checkpoints, null=null)
    if not paths:
        raise click.UsageError("Give a run or checkpoints, or '-' to read paths from stdin.")
    path = output_path(output, as_json=run.as_json, dry_run=run.dry_run)
    if path is None:
        raise click.UsageError("A soup is made beside its output: -o takes a path.")
    if evaluate is None:
        scores = _by_model(scoring, metric, json_key)
    else:
        scores = _by_command(evaluate, json_key, metric)
    from swavg.evaluation.soup import prepare_soup

    series = selected(paths, selection)
    search = prepare_soup(
        series.paths,
        path,
        mode=scores.mode,
        depends_on=scores.depends_on,
        accept_equal=not strictly,
        csv=csv,
        policy=replace(policy, key=scoring.key),
        shared=series.shared,
        # A plan says of itself what it would replace.
        force=run.force or run.dry_run,
        if_stale=run.if_stale,
        anew=anew,
    )
    if run.save_job is not None:
        from swavg.cli.run import save

        save(click.get_current_context(), run.save_job)
        run = replace(run, save_job=None)
    if run.dry_run:
        execute_and_report(search.of_all, [path], run, [*series.notes, *scores.notes])
        return
    found = _found(search, scores, series.notes, run)

    def facts_of(outputs: Sequence[str]) -> Mapping[str, Mapping[str, object]]:
        _tell_statistics(outputs, scores, scoring, run)
        more = {"tried": [asdict(each) for each in found.tried], "csv": found.csv}
        return dict.fromkeys(outputs, more)

    execute_and_report(found.request, [path], run, chosen=True, facts_of=facts_of)


def _tell_statistics(
    outputs: Sequence[str], scores: _Scores, scoring: OutputScoring, run: Run
) -> None:
    """Where candidates were evaluated with batch-norm statistics that the soup lacks: how it gets
    them."""
    data = scores.depends_on.get("batch_norm")
    if data is not None and not run.quiet:
        from swavg.console import messages

        messages.notes([recomputed_note(each, str(data), scoring) for each in outputs])


def _by_model(scoring: OutputScoring, metric: MetricOptions, json_key: str | None) -> _Scores:
    if not (scoring.model and scoring.data):
        raise click.UsageError(
            "Say what gives a checkpoint its score: --evaluate 'CMD {}', or --model and --data."
        )
    if json_key is not None:
        raise click.UsageError("--json-key says where the score is in what --evaluate prints.")
    from swavg.evaluation import loading
    from swavg.evaluation.score import score_checkpoint

    measure, model = metric.measure(), scoring.build()
    with loading.prints_on_stderr():
        evaluate = scoring.evaluator(model, measure)

    def score(path: str) -> float:
        (checkpoint,) = scoring.open([path])
        with loading.prints_on_stderr():
            found = score_checkpoint(model, checkpoint, evaluate, scoring.strip_prefix)
        return measure.of(found) if measure.finite(found) else math.nan

    key = {**scoring.cache_key(model), "metric": measure.text or measure.metric}
    return _Scores(score, measure.mode, key, scoring.notes(model))


def _by_command(text: str, json_key: str | None, metric: MetricOptions) -> _Scores:
    from swavg.evaluation.command import Command
    from swavg.series import guess_mode

    context = click.get_current_context()
    for param in context.command.params:
        of_model = isinstance(param, Headed) and param.heading == _EVALUATING
        source = context.get_parameter_source(str(param.name))
        if of_model and param.name not in ("key", "better") and source != ParameterSource.DEFAULT:
            raise click.UsageError(f"{param.opts[-1]} has no use: --evaluate gives the scores.")
    command = Command(text, json_key)
    mode = metric.better or (None if json_key is None else guess_mode(json_key))
    if mode is None:
        raise click.UsageError(
            "Say whether the lowest or the highest score is best: --mode min, or --mode max."
        )
    return _Scores(command, mode, {"evaluate": text, "json_key": json_key}, [])


def _found(search: Search, scores: _Scores, notes: Sequence[str], run: Run) -> Soup:
    """The soup, and a table of what was tried. If interrupted, says so and ends the command."""
    from swavg.console import messages
    from swavg.console import soup as console
    from swavg.console.progress import progress_bar
    from swavg.evaluation.soup import find_soup

    if not run.quiet:
        messages.notes([*notes, *scores.notes])
        if "evaluate" in scores.depends_on:
            messages.warnings(search.warnings)
    done, total, first = 0, search.evaluations, -1
    with progress_bar("evaluating", "evaluations", shown=not run.quiet) as update:

        def on_evaluation(now: int, of: int) -> None:
            nonlocal done, total, first
            done, total = now, of
            first = now if first < 0 else first
            if update is not None:
                update(now, of)

        try:
            found = find_soup(search, scores.evaluate, run.resources, on_evaluation)
        except KeyboardInterrupt as stopped:
            end_interrupted(stopped, f"{done} of {total} evaluations", search.unfinished)
    if not run.quiet:
        messages.notes([f"what was tried is in {found.csv}", *stored(first, total, found.csv)])
        console.tried(found.tried)
    return found
