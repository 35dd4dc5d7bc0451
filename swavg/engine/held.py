"""Which checkpoints an average holds: fingerprints in its recipe, so that none is added twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from swavg.planning.row import Row

MOST = 1000
"""Entries at most: the newest are kept."""


class Held(NamedTuple):
    """A checkpoint that an average holds. In a recipe it is one text: ``0123456789abcdef a.pt``,
    with a ``~`` before it where the digits are of some places only."""

    digits: str
    whole: bool
    name: str

    @property
    def fingerprint(self) -> str:
        """Its digits as they are written."""
        return f"{'' if self.whole else '~'}{self.digits}"

    def __str__(self) -> str:
        return f"{self.fingerprint} {self.name}"


def held_in(recipe: Mapping[str, object]) -> list[Held]:
    """What the recipe of an average says, of at most 1,000 checkpoints; empty if it says nothing,
    as recipes did before this was recorded."""
    entries = recipe.get("holds")
    found = []
    for entry in entries if isinstance(entries, list) else ():
        digits, _, name = str(entry).partition(" ")
        found.append(Held(digits.removeprefix("~"), not digits.startswith("~"), name))
    return found


def held_by(row: Row, each: Sequence[Sequence[Held]]) -> list[str]:
    """What the average of a row holds, as its recipe says it: what its members stand for, without
    what those of negative weights do; a weight of 0 adds nothing."""
    held: list[Held] = []
    dropped: list[Held] = []
    for member, weight in zip(row.members, row.weights, strict=True):
        if weight:
            (held if weight > 0 else dropped).extend(each[member])
    left = Counter(entry.digits for entry in dropped)
    kept = []
    for entry in held:
        if left[entry.digits]:
            left[entry.digits] -= 1
        else:
            kept.append(str(entry))
    return kept[-MOST:]
