"""``swavg eval``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import click

from swavg.cli.options import SectionedCommand
from swavg.cli.printing import print_published
from swavg.cli.ranking import Candidates, as_json, ranking, show
from swavg.cli.scoring import MetricOptions, ScoringOptions, metric_options, scoring_options
from swavg.cli.selection import Selection, recorded_selection_options, selected
from swavg.cli.survey import TableOptions, table_options
from swavg.cli.values import NULL, read_paths


@click.command("eval", cls=SectionedCommand)
@click.argument("checkpoints", nargs=-1, required=True, metavar="CKPT|RUN...", type=click.Path())
@scoring_options
@metric_options
@recorded_selection_options
@NULL
@table_options
def eval_command(
    checkpoints: tuple[str, ...],
    null: bool,
    selection: Selection,
    scoring: ScoringOptions,
    deciding: MetricOptions,
    options: TableOptions,
) -> int:
    """Evaluate checkpoints and averages on your data, and say which is best.

    Each is put into the model by itself and evaluated on the same data. A table shows the best
    first; a csv has the values. Options choose from each RUN; what is named beside it is evaluated,
    too. Batch-norm statistics are recomputed for all, plain checkpoints too, so that they can be
    compared. What --model and --data name is the user's code, and is run; it is found from the
    current folder, too. An interrupted run goes on when it is called again.

    \b
    swavg eval a.pt b.pt avg.pt --model train:build --data train:test_loader
    swavg eval run/ avg.pt --last 5 --metric error \\
        --model train.py:Net --data train.py:test
    swavg eval a.pt b.pt --metric train.py:accuracy \\
        --model train.py:Net --data train.py:test
    """
    paths, steps, notes = _chosen(read_paths(checkpoints, null=null), selection)
    found = Candidates.of(paths, steps, scoring, deciding)
    csv = options.csv or "evaluation.csv"
    outputs, known = found.outputs(csv, force=options.force, anew=options.anew)
    if options.dry_run:
        options.show_plan("eval", as_json(found, outputs), found.facts(outputs))
        return 0
    made = ranking(found, outputs, known, notes, quiet=options.quiet)
    if not options.quiet:
        show(found, made)
    print_published("eval", [as_json(found, outputs, made)], outputs.paths, as_json=options.as_json)
    return 0


def _chosen(
    paths: Sequence[str], selection: Selection
) -> tuple[list[str], list[int | None], list[str]]:
    """Checkpoints with their steps, and notes: all that are named, and what the options choose of
    each folder that is searched; if there is none, of what is named."""
    from swavg.series import in_given_order

    named = [in_given_order([path], keep_order=True) for path in paths]
    if None not in named:
        # The table has an order of its own.
        kept = replace(selection, keep_order=selection.keep_order or not selection.selects)
        chosen = [selected(paths, kept, one_for_each_step=False)]
    else:
        chosen = [
            series or selected([path], selection, one_for_each_step=False)
            for path, series in zip(paths, named, strict=True)
        ]
    return (
        [path for series in chosen for path in series.paths],
        [step for series in chosen for step in series.steps],
        [note for series in chosen for note in series.notes],
    )
