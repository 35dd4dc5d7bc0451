"""What a run of averaging would do, and what it did."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from swavg.console.messages import notes, warnings
from swavg.console.page import Cell, Column, Page, Row
from swavg.console.several import grouped, names_of, of_which, said_once
from swavg.console.text import MOST_ROWS, bar, counted, mix, number, printable, size, some
from swavg.engine.report import STDOUT, InputSummary, Report
from swavg.errors import RequestError
from swavg.formats.table import FORMATS
from swavg.planning.batch_norm import TORCH
from swavg.planning.targets import format_named, suffix_of, writable
from swavg.short_repr import one_line
from swavg.weights import effective_number, half_life_of

_Exception = tuple[str, str, str]
"""Name of a tensor, what was done, and why."""
_MOST_CHOSEN = 4
"""Of inputs that were chosen so many are named."""


def plan(reports: Sequence[Report]) -> None:
    """The plan of a run that has not been made, on stdout."""
    page = Page(sys.stdout)
    for place, report in enumerate(reports):
        if place:
            page.line()
        _inputs_and_facts(page, report)
        for exceptions in _exceptions(report):
            _not_averaged(page, exceptions, everything=True)


def summary(reports: Sequence[Report], *, verbose: bool, chosen: bool = False) -> None:
    """What a run did, on stderr: notes, exceptions, one line per output with the figures, and
    last what may make the result useless. What several outputs have to say is said once.
    ``chosen``: of the inputs nobody gave the names."""
    page = Page(sys.stderr)
    notes(said_once(reports, lambda report: report.notes))
    for exceptions, those in grouped(reports, _exceptions):
        if len(those) < len(reports):
            page.line(f"in {names_of(those)}:")
        _not_averaged(page, exceptions, everything=verbose)
    notes(said_once(reports, lambda report: _notes_of_values(report, verbose), counts=True))
    if verbose:
        for report in reports:
            _inputs_and_facts(page, report)
    for report in reports:
        done = "converted" if _copies(report) else "averaged"
        figures = _figures(report, len(reports), chosen=chosen)
        page.line((done, "green"), f" {figures}", wrap=True, hang=len(done) + 1)
    warnings(said_once(reports, lambda report: report.warnings))
    warnings(said_once(reports, lambda report: _let_through(report, verbose), counts=True))
    warnings([*_batch_norm(reports)])


def _notes_of_values(report: Report, verbose: bool) -> Iterator[str]:
    """Values that one may like to know of."""
    if report.differing_integers:
        rule = _option(report, "integers") or "last"
        names = ", ".join(some(report.differing_integers, _most(verbose)))
        yield f"integer tensors that differ: took the {rule} of {names}"
    if report.nonfinite and not _lets_through(report):
        # All inputs have the same Inf there: an attention mask, say.
        yield f"NaN or Inf in the result: {_nonfinite(report, verbose)}"


def _let_through(report: Report, verbose: bool) -> Iterator[str]:
    if report.nonfinite and _lets_through(report):
        yield f"NaN or Inf in the result: {_nonfinite(report, verbose)}"


def _batch_norm(reports: Sequence[Report]) -> Iterator[str]:
    """How to recompute batch-norm statistics that were averaged."""
    for statistics, those in grouped(reports, lambda each: [each.running_statistics]):
        if statistics:
            names = ", ".join(some(sorted(statistics), 2))
            example = those[0] if len(those) == 1 else replace(those[0], output="OUT")
            yield (
                of_which(those, reports, counts=True)
                + f"batch-norm statistics were averaged ({names}): before judging the result"
                f" recompute them with: {_recomputing(example, names)}"
            )


def _figures(report: Report, outputs: int, *, chosen: bool) -> str:
    seconds = report.seconds or 0.0
    rate = f", {size(report.read / seconds)}/s read" if seconds > 0.01 and outputs < 2 else ""
    name = f" {printable(report.output)}" if outputs > 1 else _chosen(report) if chosen else ""
    parts = f" {counted(len(report.parts), 'part')}," if report.parts else ""
    tensors = report.tensors["averaged"] + _copies(report) * report.tensors["copied"]
    return (
        f"{counted(len(report.inputs), 'checkpoint')}{name}:"
        f"{parts} {counted(tensors, 'tensor')}, {number(report.elements)}"
        f" element{'s' * (report.elements != 1)},"
        f" {size(report.written)}{_kind(report)} in {seconds:.2f} s{rate}"
    )


def _chosen(report: Report) -> str:
    names = [
        printable(name.removesuffix(suffix_of(name)) if format_named(name) else name)
        for name in (each.name for each in report.inputs)
    ]
    shown = names if len(names) <= _MOST_CHOSEN else [*names[:2], "...", names[-1]]
    return f" ({', '.join(shown)})"


def _kind(report: Report) -> str:
    """What was written, where neither the output's name nor the inputs say it."""
    first, wrote = report.inputs[0], report.format
    if report.parts or format_named(report.output) == wrote or _option(report, "max_shard_size"):
        return ""
    unwritten = writable(first.format) != first.format and wrote == "safetensors"
    alike = writable(first.format) == wrote and not unwritten
    suffixes = suffix_of(first.path), suffix_of(report.output)
    if alike and (FORMATS[wrote].folder or report.output == STDOUT or len({*suffixes}) == 1):
        return ""
    kind = "a Hugging Face folder" if wrote == "folder" else wrote
    return f" as {kind}" + (f" ({first.format} is only read)" if unwritten else "")


def _recomputing(report: Report, names: str) -> str:
    """What recomputes batch-norm statistics in the framework that gave them these names."""
    if "batch_stats" in names:
        return 'model.apply(..., mutable=["batch_stats"]) over training data'
    if not report.running_statistics[0].endswith(TORCH):
        return "model(x, training=True) over some hundred batches of training data"
    output = "OUT" if report.output == STDOUT else shlex.quote(report.output)
    if part := next((p for p in report.parts if names.startswith(f"{p}/")), ""):
        output = shlex.quote(os.path.join(report.output, part))
    return f"swavg bn {output} --model ... --data ..."


def _copies(report: Report) -> bool:
    """Whether it is of a conversion."""
    return report.recipe.get("method") == "copy"


def _nonfinite(report: Report, verbose: bool) -> str:
    return ", ".join(some(report.nonfinite, _most(verbose)))


def _lets_through(report: Report) -> bool:
    return bool(_option(report, "allow_nonfinite"))


def _option(report: Report, name: str) -> object:
    """A field of the policy; None where it is as by default."""
    options = report.recipe.get("options")
    return options.get(name) if isinstance(options, Mapping) else None


def _most(verbose: bool) -> int:
    return 99 if verbose else 4


def _inputs_and_facts(page: Page, report: Report) -> None:
    _inputs(page, report.inputs)
    for label, value in (*_facts(report), *_shape_of_weights(report)):
        page.fact(label, printable(value), indent=10)


def _inputs(page: Page, inputs: Sequence[InputSummary]) -> None:
    """The inputs with their weights; what all have in common stands once, in the title."""
    measured = any(entry.relative_distance is not None for entry in inputs)
    kinds = {(entry.tensors, mix(entry.dtypes)) for entry in inputs}
    alike = len(inputs) > 1 and len(kinds) == 1
    columns = [Column("weight", True), Column(""), Column("checkpoint", folds=True)]
    columns += [Column("distance", True), Column("cosine", True)] if measured else []
    columns += [Column("size", True)]
    columns += [] if alike else [Column("tensors", True), Column("dtypes", folds=True)]
    title = None
    if alike:
        tensors = counted(inputs[0].tensors, "tensor")
        title = f"{len(inputs)} checkpoints of {tensors}, {', '.join(mix(inputs[0].dtypes))}"
    largest = max((abs(entry.weight) for entry in inputs), default=0.0) or 1.0
    rows = []
    for entry in inputs:
        colour = "red" if entry.weight < 0 else "cyan"
        drawn = (bar(abs(entry.weight) / largest), colour)
        cells: list[Cell] = [f"{entry.weight:.4g}", drawn, printable(entry.name)]
        if measured:
            cells += [
                "" if v is None else f"{v:.4f}" for v in (entry.relative_distance, entry.cosine)
            ]
        cells += [size(entry.size)]
        cells += [] if alike else [str(entry.tensors), ", ".join(mix(entry.dtypes))]
        rows.append(Row(cells))
    page.table(columns, rows, title=title, gap=3, framed=True)


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    counts = report.tensors
    parts = [f"{counts['averaged']} averaged"]
    parts += [f"{counts[kind]} {kind}" for kind in ("integer", "copied", "dropped") if counts[kind]]
    ties = f", {len(report.ties)} tied" if report.ties else ""
    yield "tensors", ", ".join(parts) + f" ({number(report.elements)} elements{ties})"
    if report.parts:
        yield "parts", ", ".join(report.parts)
    yield "reads", size(report.read)
    files = f" in {report.files} files" if report.files > 1 else ""
    name = "standard output" if report.output == STDOUT else report.output
    yield "writes", f"{size(report.written)}{files} to {name} ({report.format})"
    yield "buffers", f"{size(report.memory)}, {report.threads} workers, on {report.device}"


def _shape_of_weights(report: Report) -> Iterator[tuple[str, str]]:
    """The effective number of checkpoints and the half-life of the weights."""
    numbers = [entry.weight for entry in report.inputs]
    if len(numbers) < 2:
        return
    try:
        effective = effective_number(numbers)
        half = half_life_of(numbers)
    except RequestError:
        return
    yield (
        "weights",
        f"as {effective:.3g} equal checkpoints (1/sum w^2); half of the weight lies in the"
        f" newest {half:.3g}",
    )


def _exceptions(report: Report) -> Iterator[tuple[_Exception, ...]]:
    """All that were not averaged, if there are some."""
    if report.not_averaged:
        yield tuple((each["name"], each["action"], each["reason"]) for each in report.not_averaged)


def _not_averaged(page: Page, exceptions: Sequence[_Exception], *, everything: bool) -> None:
    """Tensors by what became of them and why: a row for those that share both."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, action, reason in exceptions:
        groups.setdefault((action, reason), []).append(name)
    rows = []
    for (action, reason), names in groups.items():
        shown = "\n".join(map(one_line, names if everything else some(names)))
        rows.append(Row([shown, action, printable(reason)]))
    if not everything and len(rows) > MOST_ROWS:
        more = Row([f"... and {len(rows) - MOST_ROWS} more reasons", "", "-v shows all"])
        rows = [*rows[:MOST_ROWS], more]
    columns = [Column(h, folds=True) for h in ("tensor", "was", "because")]
    page.table(columns, rows, gap=3, framed=True)
