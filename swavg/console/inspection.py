"""What ``swavg inspect`` prints."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from swavg.analysis import Entry, Inspection, Pickled, Total, ancestry
from swavg.console.messages import notes
from swavg.console.page import Column, Page, Row
from swavg.console.text import MOST_ROWS, counted, number, shape_text, shortened, size
from swavg.console.tree import branches, tree_of
from swavg.engine.origins import COMMON
from swavg.short_repr import one_line

_SHOWN = {*COMMON} - {"options"}
"""What of a recipe is shown otherwise than by its name."""
_DEEP, _DEEPEST, _ALL_INPUTS = 3, 20, 1_000_000
"""Of the inputs of inputs so many levels are shown, and with --all."""


def show_inspection(found: Inspection, *, tree: bool, everything: bool) -> None:
    """What a checkpoint holds: its tensors, then the sums and all else."""
    page = Page(sys.stdout)
    shown = counted(len(found.tensors), "tensor")
    if len(found.tensors) < found.held:
        shown += f" of {found.held:,}"
    page.line(one_line(found.path), style="bold")
    page.line(f"{found.format}, {size(found.size)}, {shown}")
    page.line()
    _tensors(page, found, tree, everything)
    _totals(page, "dtype", found.by_dtype, found.total, everything)
    _totals(page, "module", found.by_module, found.total, everything)
    page.line()
    total = found.total
    page.fact(
        "total", f"{shown}, {number(total.elements)} elements, {size(total.nbytes)} of values"
    )
    _numbers(page, found)
    if found.ties:
        groups = [" = ".join(one_line(name) for name in group) for group in found.ties]
        page.fact("ties", groups[0])
        for group in groups[1:] if everything else groups[1:MOST_ROWS]:
            page.fact("", group)
        if len(groups) > MOST_ROWS and not everything:
            page.fact("", f"and {len(groups) - MOST_ROWS} more; --all shows them")
    if found.pickled is not None:
        _pickled(page, found.pickled, everything)
    _folder(page, found, everything)
    for index, (name, value) in enumerate(sorted(found.metadata.items())):
        page.fact("" if index else "metadata", f"{one_line(name)} = {shortened(value)}")
    if found.recipe is not None:
        _recipe(page, found.path, found.recipe, everything)
    notes(found.notes)


def _tensors(page: Page, found: Inspection, tree: bool, everything: bool) -> None:
    stats = any(entry.statistics is not None for entry in found.tensors)
    odd = [
        kind
        for kind in ("nans", "infs")
        if stats and any(getattr(entry.statistics, kind) for entry in found.tensors)
    ]
    columns = [Column("module" if tree else "tensor", folds=True), Column("dtype", drop=2 * stats)]
    columns += [Column("shape", True, drop=3 * stats)]
    columns += [Column("elements", True, drop=1)] if tree else []
    columns += [Column("bytes", True, drop=stats)]
    if stats:
        columns += [Column(heading, True) for heading in ("mean", "std", "min", "max")]
        columns += [Column({"nans": "NaN", "infs": "Inf"}[kind], True) for kind in odd]

    def row(entry: Entry, name: str) -> Row:
        cells = [name, entry.dtype, shape_text(entry.shape)]
        cells += [number(entry.elements)] if tree else []
        cells += ["tied" if entry.tied_to is not None else size(entry.nbytes)]
        figures = entry.statistics
        if figures is not None:
            four = (figures.mean, figures.std, figures.min, figures.max)
            cells += [_figure(value) for value in four]
            cells += [f"{getattr(figures, kind):,}" for kind in odd]
        bad = figures is not None and (figures.nans or figures.infs)
        return Row(cells, "red" if bad else None)

    if not tree:
        page.table(columns, [row(entry, one_line(entry.name)) for entry in found.tensors])
        return
    root = tree_of(found.tensors)
    rows: list[Row] = []
    blank = [""] * (len(columns) - 5)
    for label, node, times in branches(root, alike=not (stats or everything)):
        if node.entry is not None:
            rows.append(row(node.entry, label))
            continue
        each = f"{times} x " if times > 1 else ""
        cells = [label, "", counted(node.tensors, "tensor"), each + number(node.elements)]
        rows.append(Row([*cells, each + size(node.nbytes), *blank], None if stats else "bold"))
    page.table(columns, rows)


def _figure(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) and abs(value) < 10**12 else f"{value:.4g}"


def _totals(
    page: Page, heading: str, totals: Mapping[str, Total], whole: Total, everything: bool
) -> None:
    page.line()
    columns = [
        Column(heading, folds=True),
        *(Column(h, True) for h in ("tensors", "elements", "bytes")),
    ]
    rows = []
    names = list(totals)
    for name in names if everything else names[:MOST_ROWS]:
        each = totals[name]
        share = f"{each.nbytes / whole.nbytes:.1%}" if whole.nbytes else ""
        facts = [f"{each.tensors:,}", number(each.elements), size(each.nbytes), share]
        rows.append(Row([one_line(name) or "(no module)", *facts]))
    if len(rows) < len(names):
        rows.append(Row([f"and {len(names) - len(rows)} more; --all", "", "", "", ""]))
    page.table([*columns, Column("share", True)], rows)


def _numbers(page: Page, found: Inspection) -> None:
    figures = [entry.statistics for entry in found.tensors if entry.tied_to is None]
    known = [each for each in figures if each is not None]
    if not known:
        return
    nans, infs = sum(each.nans for each in known), sum(each.infs for each in known)
    bad = sum(1 for each in known if each.nans or each.infs)
    page.fact(
        "values",
        f"{nans:,} NaN and {infs:,} Inf in {counted(bad, 'tensor')}" if bad else "no NaN, no Inf",
    )


def _pickled(page: Page, pickled: Pickled, everything: bool) -> None:
    where = f"under '{one_line(pickled.key)}'" if pickled.key else "at the top level"
    page.fact("state dict", where)
    beside = [name for name in pickled.other_entries if name not in pickled.scalars]
    if beside:
        page.fact("also holds", _listed(beside, everything))
    inside = [name for name in pickled.non_tensors if name not in pickled.other_entries]
    inside = [name for name in inside if name not in pickled.scalars]
    if inside:
        page.fact("no tensors", _listed(inside, everything))
    for index, (name, value) in enumerate(pickled.scalars.items()):
        page.fact("" if index else "entries", f"{one_line(name)} = {shortened(str(value))}")
    if pickled.callables:
        page.fact("torch runs", _listed(pickled.callables, everything))
    if pickled.foreign:
        page.fact("foreign", _listed(pickled.foreign, everything))
        page.fact("", "torch imports and runs these with weights_only=False; swavg runs nothing")


def _folder(page: Page, found: Inspection, everything: bool) -> None:
    folder = found.folder
    if folder is None:
        return
    for index, shard in enumerate(folder.shards if everything else folder.shards[:MOST_ROWS]):
        facts = f"{one_line(shard.name)}, {size(shard.size)}, {counted(shard.tensors, 'tensor')}"
        page.fact("" if index else ("shards" if len(folder.shards) > 1 else "weights"), facts)
    if len(folder.shards) > MOST_ROWS and not everything:
        page.fact("", f"and {len(folder.shards) - MOST_ROWS} more; --all shows them")
    if folder.index is not None:
        page.fact("index", one_line(folder.index))
    for name, value in folder.index_metadata.items():
        page.fact("", f"{one_line(name)} = {shortened(str(value))}")
    if folder.side_files:
        page.fact("side files", _listed(folder.side_files, everything))
    if folder.left_out:
        page.fact("other files", _listed(folder.left_out, everything))


def _recipe(page: Page, path: str, recipe: Mapping[str, object], everything: bool) -> None:
    page.fact("recipe", f"{_method(recipe)}, by swavg {shortened(str(recipe.get('version')))}")
    most, deepest = (_ALL_INPUTS, _DEEPEST) if everything else (MOST_ROWS, _DEEP)
    for each in ancestry(path, recipe, most=most, deepest=deepest):
        told, indent = each.told, "  " * each.level
        weight = "-" if told.weight is None else str(told.weight)
        weight = f"{told.weight:.6g}" if isinstance(told.weight, float) else weight
        facts = [shortened(told.name)]
        facts += [] if told.size is None else [size(told.size)]
        for unit, count in (("step", told.step), ("epoch", told.epoch)):
            facts += [] if count is None or str(count) in told.name else [f"{unit} {count}"]
        made = f": {_method(each.recipe)}" if each.recipe else ""
        above = " (as above)" * each.repeated
        page.fact("", f"{indent}{shortened(weight)}  {', '.join(facts)}{made}{above}")
        if each.left_out:
            page.fact("", f"{indent}and {each.left_out:,} more; --all shows them")
    for name, value in recipe.items():
        if name not in _SHOWN and value not in ({}, [], None):
            page.fact("", f"{shortened(name)} = {shortened(str(value))}")


def _method(recipe: Mapping[str, object]) -> str:
    return shortened(str(recipe.get("method")))


def _listed(names: Sequence[str], everything: bool) -> str:
    most = len(names) if everything else MOST_ROWS
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(one_line(name) for name in names[:most]) + more
