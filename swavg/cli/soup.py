"""``swavg soup``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import click

from swavg.cli.averaging import OUTPUT, Run, averaging_command, output_path
from swavg.cli.executing import execute_and_report
from swavg.cli.selection import Selection, selected, selection_by_step_options
from swavg.cli.signals import exit_code
from swavg.cli.values import NULL, read_paths
from swavg.planning.policy import Policy

if TYPE_CHECKING:
    from swavg.evaluation.soup import Evaluate, Search, Soup
    from swavg.weights import Mode

_TENSORS = (
    "mixed_dtypes", "include", "exclude", "drop_excluded", "key", "drop_ties", "allow_nonfinite",
    "dtype", "accumulate", "weights_only", "max_shard_size", "format",
)  # fmt: skip
# It goes on by itself, and is made on this machine.
_NOT_RUNNING = ("device", "engine", "address", "part", "finish", "proceed")


@averaging_command(policy_fields=_TENSORS, not_running=_NOT_RUNNING)
@click.argument("checkpoints", nargs=-1, metavar="RUN|CKPT...", type=click.Path())
@OUTPUT
@click.option(
    "--evaluate",
    metavar="CMD",
    help="A command that prints the score of a checkpoint, whose path is put for {}.",
)
@click.option(
    "--json-key",
    metavar="KEY",
    help="CMD prints JSON, with the score under this key, such as eval.loss. [default: the score"
    " is the last line]",
)
@click.option(
    "--mode",
    type=click.Choice(["min", "max"]),
    help="Whether the lowest or the highest score is best. [default: by the name of KEY]",
)
@click.option(
    "--strictly",
    is_flag=True,
    help="Keep only what makes the soup better, as the paper's code does; not what makes it no"
    " worse, as the paper says.",
)
@click.option(
    "--csv",
    metavar="CSV",
    type=click.Path(),
    help="What was tried, with its scores. [default: beside the output]",
)
@click.option("--restart", "anew", is_flag=True, help="Evaluate everything anew.")
@NULL
@selection_by_step_options
def soup(
    checkpoints: tuple[str, ...],
    output: str | None,
    evaluate: str | None,
    json_key: str | None,
    mode: Mode | None,
    strictly: bool,
    csv: str | None,
    anew: bool,
    null: bool,
    selection: Selection,
    policy: Policy,
    run: Run,
) -> None:
    """The average of those checkpoints whose average scores best (a greedy soup).

    Each checkpoint is evaluated by itself. Then, best first, each is kept if the mean with it
    scores no worse than without it (Wortsman et al. 2022). CMD is run by the shell, and gets the
    path of a checkpoint or of a candidate: a float32 checkpoint of the first one's format. An
    interrupted soup goes on when it is called again.

    \b
    swavg soup run/ --last 5 --evaluate 'python eval.py {}' --mode max -o soup.safetensors
    swavg soup a.pt b.pt c.pt --evaluate 'python eval.py {} --json' --json-key val_loss
    """
    paths = read_paths(checkpoints, null=null)
    if not paths:
        raise click.UsageError("Give a run or checkpoints, or '-' to read paths from stdin.")
    path = output_path(output, as_json=run.as_json, dry_run=run.dry_run)
    if path is None:
        raise click.UsageError("A soup is made beside its output: -o takes a path.")
    score, depends_on, best = _scoring(evaluate, json_key, mode)
    from swavg.evaluation.soup import prepare_soup

    series = selected(paths, selection)
    search = prepare_soup(
        series.paths,
        path,
        mode=best,
        depends_on=depends_on,
        accept_equal=not strictly,
        csv=csv,
        policy=policy,
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
        execute_and_report(search.of_all, [path], run, [*series.notes, *search.notes])
        return
    found = _found(search, score, run)
    more = {"tried": [asdict(each) for each in found.tried], "csv": found.csv}
    execute_and_report(found.request, [path], run, series.notes, chosen=True, more=more)


def _scoring(
    evaluate: str | None, json_key: str | None, mode: Mode | None
) -> tuple[Evaluate, Mapping[str, object], Mode]:
    """What gives a checkpoint its score, what that depends on, and which score is best."""
    from swavg.evaluation.command import Command
    from swavg.series import guess_mode

    if evaluate is None:
        raise click.UsageError("Say what gives a checkpoint its score: --evaluate 'CMD {}'.")
    best = mode or (None if json_key is None else guess_mode(json_key))
    if best is None:
        raise click.UsageError("Say whether the lowest or the highest score is best: --mode.")
    return Command(evaluate, json_key), {"evaluate": evaluate, "json_key": json_key}, best


def _found(search: Search, score: Evaluate, run: Run) -> Soup:
    """The soup, and a table of what was tried. If interrupted, says so and ends the command."""
    from swavg.console import messages
    from swavg.console import soup as console
    from swavg.console.progress import progress_bar
    from swavg.console.survey import interrupted
    from swavg.engine.resources import Resources
    from swavg.evaluation.soup import find_soup

    resources = Resources(threads=run.threads, memory=run.memory, check_crc=run.check_crc)
    done, total = 0, search.evaluations
    with progress_bar("evaluating", "evaluations", shown=not run.quiet) as update:

        def on_evaluation(now: int, of: int) -> None:
            nonlocal done, total
            done, total = now, of
            if update is not None:
                update(now, of)

        try:
            found = find_soup(search, score, resources, on_evaluation)
        except KeyboardInterrupt as stopped:
            interrupted(done, total, search.unfinished, "evaluations")
            raise click.exceptions.Exit(exit_code(stopped)) from None
    if not run.quiet:
        messages.notes([f"what was tried is in {found.csv}"])
        console.tried(found.tried)
    return found
