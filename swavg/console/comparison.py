"""What ``swavg diff`` prints."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from swavg.analysis import Comparison, Distance
from swavg.console.messages import notes
from swavg.console.page import Column, Page, Row
from swavg.console.text import MOST_ROWS, counted, shape_text
from swavg.short_repr import one_line


def show_comparison(found: Comparison, *, everything: bool) -> None:
    """In what two checkpoints differ, and the verdict last."""
    page = Page(sys.stdout)
    page.fact("A", f"{one_line(found.a)}, {counted(found.tensors[0], 'tensor')}")
    page.fact("B", f"{one_line(found.b)}, {counted(found.tensors[1], 'tensor')}")
    for letter, names in (("A", found.only_in_a), ("B", found.only_in_b)):
        if names:
            page.line()
            page.line(f"only in {letter} ({len(names):,})", style="bold")
            for name in names if everything else names[:MOST_ROWS]:
                page.line(f"  {one_line(name)}")
            _more(page, len(names), everything)
    if found.mismatches:
        page.line()
        rows = [
            Row([one_line(each.name), *map(_kind, each.dtypes, each.shapes)])
            for each in (found.mismatches if everything else found.mismatches[:MOST_ROWS])
        ]
        headings = ("in A", "in B")
        columns = [Column("other dtype or shape", folds=True), *map(Column, headings)]
        page.table(columns, rows)
        _more(page, len(found.mismatches), everything)
    _distances(page, found, everything)
    page.line()
    if found.same_keys:
        page.fact("keys", f"{counted(found.matching, 'tensor')} of the same name, shape and dtype")
    else:
        parts = [f"{found.matching:,} alike", f"{len(found.only_in_a):,} only in A"]
        parts += [f"{len(found.only_in_b):,} only in B"]
        page.fact("keys", ", ".join([*parts, f"{len(found.mismatches):,} of other dtype or shape"]))
    if found.distances is not None:
        differ = len(found.distances) - found.identical
        page.fact("values", f"{counted(found.identical, 'tensor')} identical, {differ:,} differ")
    if found.same is None:
        page.line("the same names, shapes and dtypes; values were not read")
    elif found.same:
        page.line("the same names, shapes, dtypes and values", style="green")
    else:
        page.line("different", style="yellow")
    notes(found.notes)


def _kind(dtype: str, shape: Sequence[int]) -> str:
    return f"{dtype} {shape_text(shape)}"


def _more(page: Page, count: int, everything: bool) -> None:
    if count > MOST_ROWS and not everything:
        page.line(f"  and {count - MOST_ROWS:,} more; --all shows them")


def _distances(page: Page, found: Comparison, everything: bool) -> None:
    if found.distances is None or found.identical == len(found.distances):
        return
    odd = any(each.nonfinite for each in found.distances)
    columns = [Column("tensor", folds=True)]
    columns += [Column(h, True) for h in ("|a-b|/|a|", "max |a-b|", "cosine")]
    columns += [Column("differing", True, drop=1)]
    columns += [Column("NaN, Inf", True)] if odd else []

    def row(each: Distance, name: str, style: str | None = None) -> Row:
        relative = "a is 0" if each.relative_distance is None else f"{each.relative_distance:.4g}"
        cosine = "-" if each.cosine is None else f"{each.cosine:.6f}"
        share = f"{each.differing / each.elements:.2%}" if each.elements else "-"
        cells = [name, relative, f"{each.largest:.4g}", cosine, share]
        cells += [f"{each.nonfinite:,}"] if odd else []
        return Row(cells, "red" if each.nonfinite and style is None else style)

    moved = [each for each in found.distances if each.differing]
    rows = [row(each, one_line(each.name)) for each in (moved if everything else moved[:MOST_ROWS])]
    if len(moved) > len(rows):
        rest = [""] * (len(columns) - 1)
        rows.append(Row([f"and {len(moved) - len(rows):,} more; --all", *rest]))
    if found.total is not None:
        rows.append(row(found.total, "all floats", "bold"))
    page.line()
    page.table(columns, rows)
