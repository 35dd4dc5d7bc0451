"""Integers that differ between inputs: which they are, and what is said of their mean."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from swavg.errors import some
from swavg.planning.plan import Plan
from swavg.storage.pool import Pool

_LISTED = 6
_LOOKED_AT = 1000
_BEGIN = 1 << 12
"""Elements of each that are compared."""


def also_differ(plan: Plan, row: int, first: int, pool: Pool, *, counters: bool) -> str:
    """A sentence for an error that names the entry ``first`` of a row: which other integers
    differ, as far as their first elements tell. ``counters``: single elements too."""
    found = []
    entries = plan.entries
    for entry in _integers(plan, row):
        made = entries.make(plan.checkpoints, entry)
        numel = math.prod(made.shape)
        if entry == first or numel < (1 if counters else 2):
            continue
        stop = min(numel, _BEGIN)
        begins = {
            bytes(plan.checkpoints[member].read_range(tensor, 0, stop, pool))
            for member, tensor in zip(made.operation.members, made.tensors, strict=True)
        }
        if len(begins) > 1:
            found.append(f"'{plan.name(row, entry)}'")
    return f" So do {some(found, _LISTED)}." if found else ""


def _integers(plan: Plan, row: int) -> Iterator[int]:
    """The first entries of a row that hold integers."""
    entries, count = plan.entries, 0
    integers = [
        made.op == "integer" and made.dtype.bits >= 8 and not made.dtype.floating
        for made in entries.operations
    ]
    for file in plan.outputs[row].files:
        for entry in file.entries:
            if integers[entries.operation[entry]] and count < _LOOKED_AT:
                count += 1
                yield entry


def doubtful_means(plan: Plan, row: int, differing: Collection[tuple[int, int]]) -> Iterator[str]:
    """A warning of tensors of integers, no counters, whose mean was taken."""
    if plan.policy.integers != "mean":
        return
    entries = plan.entries
    names = [
        f"'{plan.name(row, entry)}'"
        for at, entry in sorted(differing)
        if at == row and math.prod(entries.forms[entries.form[entry]][0]) > 1
    ]
    if names:
        yield (
            "the mean of integers was taken, which is none if they are indices, permutations or"
            f" codes: {some(names, _LISTED)}"
        )
