"""Doing what a command that writes averages planned, and telling of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from swavg.cli.averaging import Run
from swavg.cli.errors import with_options
from swavg.cli.printing import print_json, print_published
from swavg.cli.signals import ignore_signals
from swavg.errors import OutputExistsError

if TYPE_CHECKING:
    from swavg.console.progress import OnProgress
    from swavg.engine.report import Progress, Report
    from swavg.engine.resources import Resources
    from swavg.planning.plan import Plan
    from swavg.planning.policy import Policy
    from swavg.planning.row import Request

FactsOf = Callable[[Sequence[str]], Mapping[str, Mapping[str, object]]]
"""Called with the paths of outputs: what more is said of each in its report."""


def execute_and_report(
    request: Request,
    outputs: Sequence[str | None],
    run: Run,
    notes: Sequence[str] = (),
    *,
    folder: str | None = None,
    chosen: bool = False,
    facts_of: FactsOf | None = None,
) -> None:
    """Do what a method asks for with one read of the inputs, or print what would be done.

    ``folder`` is made for the outputs, and appears with all of them. ``chosen``: the inputs are
    not just what was given. ``facts_of`` is called once the outputs are there.
    """
    from swavg.engine.average import prepare

    execute, resources = _execution(run), run.resources
    # What is only shown is not worth a read of everything.
    policy = replace(request.policy, digest="sampled") if run.dry_run else request.policy
    with _hashing(policy, run) as on_hash:
        plan = prepare(
            request.inputs,
            request.rows,
            outputs,
            policy,
            force=run.force,
            distances=run.distances,
            folder=folder,
            notes=request.notes,
            warnings=request.warnings,
            shared=request.shared,
            on_hash=on_hash,
        )
    if run.card:
        from swavg.cli.card import with_cards

        plan = with_cards(plan)
    if run.save_job is not None:
        from swavg.cli.run import save

        save(click.get_current_context(), run.save_job)
    if run.dry_run:
        _show_plan(plan, resources, run, notes)
        return
    if run.if_stale:
        from swavg.engine.stale import replacing_averages, up_to_date

        if up_to_date(plan):
            _tell_up_to_date(plan, resources, run, facts_of)
            return
        plan = replacing_averages(plan)
    made = _executed(execute, plan, resources, run, notes)
    paths = _paths(plan)
    if run.part is not None:
        _tell_part(run, plan.folder or paths[0])
        return
    _tell_made(made, paths, run, facts_of, chosen=chosen)


def _hashing(policy: Policy, run: Run) -> AbstractContextManager[OnProgress | None]:
    """Progress of a read for digests of all bytes."""
    if policy.digest != "full" or run.quiet:
        return nullcontext()
    from swavg.console.progress import progress_bar

    return progress_bar("hashing", "bytes", shown=True)


def _tell_made(
    made: Sequence[Report],
    paths: Sequence[str],
    run: Run,
    facts_of: FactsOf | None,
    *,
    chosen: bool,
) -> None:
    params = click.get_current_context().command.params
    reports = [
        replace(
            report,
            warnings=tuple(with_options(text, params) for text in report.warnings),
            notes=tuple(with_options(text, params) for text in report.notes),
        )
        for report in made
    ]
    if not run.quiet:
        from swavg.console import report as console

        console.summary(reports, verbose=run.verbose, chosen=chosen)
    _publish([report.to_json() for report in reports], paths, run, facts_of)


def _publish(
    values: Sequence[Mapping[str, object]],
    paths: Sequence[str],
    run: Run,
    facts_of: FactsOf | None,
) -> None:
    """Print the paths, which are there whatever becomes of evaluating them, or all as JSON."""
    if not run.as_json:
        print_published("report", values, paths, as_json=False)
    found = {} if facts_of is None else facts_of(paths)
    if run.as_json:
        merged = [{**value, **found.get(str(value["output"]), {})} for value in values]
        print_published("report", merged, paths, as_json=True)


def _paths(plan: Plan) -> list[str]:
    """Those of the outputs."""
    paths = [output.target.path for output in plan.outputs if output.target.path is not None]
    return [*dict.fromkeys(paths)]


def _tell_up_to_date(plan: Plan, resources: Resources, run: Run, facts_of: FactsOf | None) -> None:
    from swavg.console import messages
    from swavg.engine.average import dry_run

    if not run.quiet:
        messages.notes(["up to date"])
    here = replace(resources, engine="local", address=None)
    reports = [replace(each, dry_run=False, up_to_date=True) for each in dry_run(plan, here)]
    _publish([report.to_json() for report in reports], _paths(plan), run, facts_of)


def _tell_part(run: Run, output: str) -> None:
    """A part has no output of its own: nothing is published."""
    if run.as_json:
        print_json("part", {"part": run.part, "output": output})
    elif not run.quiet:
        from swavg.console import messages

        messages.notes(
            [f"part {run.part} of {output} is done; once all are, --finish gives it its name"]
        )


def _share(plan: Plan, run: Run, reports: Sequence[Report]) -> list[str]:
    """What of a plan its part makes."""
    if run.part is None:
        return []
    from swavg.console.text import size
    from swavg.engine.parts import Part, share

    tasks, whole = share(plan, Part.parse(run.part))
    read, written = (
        f"{size(total * tasks / max(1, whole))} of {size(total)}"
        for total in (sum(each.read for each in reports), sum(each.written for each in reports))
    )
    return [
        f"part {run.part} makes {tasks} of {whole} tasks: it reads about {read}, and writes about"
        f" {written}"
    ]


def _show_plan(plan: Plan, resources: Resources, run: Run, notes: Sequence[str]) -> None:
    from swavg.console import messages
    from swavg.console import report as console
    from swavg.console.several import said_once
    from swavg.engine.average import dry_run
    from swavg.engine.outputs import check

    params = click.get_current_context().command.params
    exists: tuple[str, ...] = ()
    try:
        check(plan)
    except OutputExistsError as error:
        exists = (f"{error.message}. {error.hint}",)
    reports = dry_run(plan, resources)
    share = _share(plan, run, reports)
    reports = [
        replace(
            report,
            warnings=tuple(with_options(w, params) for w in (*report.warnings, *exists)),
            notes=(*report.notes, *share),
        )
        for report in reports
    ]
    if run.as_json:
        print_json("report", *(report.to_json() for report in reports))
        return
    console.plan(reports)
    messages.notes([*notes, *said_once(reports, lambda report: report.notes)])
    messages.warnings(said_once(reports, lambda report: report.warnings))


def _executed(
    execute: Callable[..., list[Report]],
    plan: Plan,
    resources: Resources,
    run: Run,
    notes: Sequence[str],
) -> list[Report]:
    if run.quiet:
        return execute(plan, resources, None, ignore_signals)
    from swavg.console import messages
    from swavg.console.progress import progress_bar

    messages.notes(notes)
    verb = "converting" if plan.rows[0].copies else "averaging"
    with progress_bar(verb, "bytes", shown=True) as update:

        def on_progress(progress: Progress) -> None:
            assert update is not None
            update(progress.read, progress.total)

        return execute(plan, resources, None if update is None else on_progress, ignore_signals)


def _execution(run: Run) -> Callable[..., list[Report]]:
    """What does a plan: at once, in parts, or where a run before it ended."""
    ways = [name for name, used in (("--part", run.part is not None), ("--finish", run.finish),
                                    ("--continue", run.proceed)) if used]  # fmt: skip
    if len(ways) > 1:
        raise click.UsageError(f"{ways[0]} and {ways[1]} exclude each other.")
    if not ways:
        from swavg.engine.average import execute

        return execute
    from swavg.engine import parts

    if run.part is None:
        return parts.finish if run.finish else parts.proceed
    return functools.partial(parts.run_part, part=parts.Part.parse(run.part))
