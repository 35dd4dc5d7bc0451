"""The report of a composite: of its parts together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from swavg.engine.report import InputSummary, Report, Tally, report
from swavg.engine.resources import Resources, Sizes
from swavg.formats.part_names import in_whole
from swavg.planning.composite import Parts
from swavg.planning.plan import Plan


def reports(
    plan: Plan,
    sizes: Sizes,
    resources: Resources,
    tally: Tally | None = None,
    seconds: float | None = None,
) -> list[Report]:
    """A report for each output, before a run or with what it found out."""
    made = [report(plan, row, sizes, resources, tally, seconds) for row in range(len(plan.rows))]
    if plan.parts is None:
        return made
    return [
        _together(plan.parts, made[first : first + plan.width], plan.rows[first].members)
        for first in range(0, len(made), plan.width)
    ]


def _together(parts: Parts, reports: Sequence[Report], members: Sequence[int]) -> Report:
    """One report of those of an output's parts, the first of which has the distances."""
    first, width = reports[0], parts.count
    names = parts.names[members[-1] // width]
    inputs = tuple(
        _summary(parts.roots[member // width], [each.inputs[at] for each in reports])
        for at, member in enumerate(members)
    )

    def named(found: Iterable[Iterable[str]]) -> tuple[str, ...]:
        return tuple(
            in_whole(part, name) for part, own in zip(names, found, strict=True) for name in own
        )

    def union(found: Iterable[Iterable[str]]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(text for own in found for text in own))

    return replace(
        first,
        inputs=inputs,
        parts=tuple(name or "." for name in names),
        tensors=_sum(each.tensors for each in reports),
        elements=sum(each.elements for each in reports),
        read=sum(each.read for each in reports),
        written=sum(each.written for each in reports),
        files=sum(each.files for each in reports),
        not_averaged=tuple(
            {**entry, "name": in_whole(part, entry["name"])}
            for part, each in zip(names, reports, strict=True)
            for entry in each.not_averaged
        ),
        ties=tuple(
            tuple(in_whole(part, name) for name in tied)
            for part, each in zip(names, reports, strict=True)
            for tied in each.ties
        ),
        differing_integers=named(each.differing_integers for each in reports),
        nonfinite=named(each.nonfinite for each in reports),
        running_statistics=named(each.running_statistics for each in reports),
        notes=union(each.notes for each in reports),
        warnings=union(each.warnings for each in reports),
        recipe={**first.recipe, "inputs": [each.name for each in inputs]},
    )


def _summary(root: str, parts: Sequence[InputSummary]) -> InputSummary:
    return replace(
        parts[0],
        path=root,
        format="composite",
        size=sum(each.size for each in parts),
        tensors=sum(each.tensors for each in parts),
        dtypes=_sum(each.dtypes for each in parts),
    )


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)
