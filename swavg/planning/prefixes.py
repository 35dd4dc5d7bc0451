"""Which prefix keeps the names of inputs apart: what a mismatch says before it lists names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

_MOST = 12
"""Prefixes of a table that are tried."""


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Behind which names are the same, and that as a sentence without its end."""

    fact: str
    prefixes: tuple[str, ...]

    @property
    def hint(self) -> str:
        # The longer ones first: one may begin another.
        ordered = sorted(self.prefixes, key=len, reverse=True)
        options = " ".join(f"strip_prefix='{prefix}'" for prefix in ordered)
        return f"Use {options} to match and write names without it."


def behind_prefix(tables: Sequence[Collection[str]], shown: Sequence[str]) -> Prefixes | None:
    """The prefixes behind which the names of other tables are those of the last; None if that is
    not what keeps them apart. ``shown`` names the tables."""
    *others, last = map(set, tables)
    facts: list[str] = []
    prefixes: dict[str, None] = {}
    for names, name in zip(others, shown, strict=False):
        found = _of_pair(names, last)
        if found is not None:
            one, two = found
            prefixes |= dict.fromkeys(filter(None, found))
            facts.append(_fact((names, one, name), (last, two, shown[-1])))
    return Prefixes(facts[0], tuple(prefixes)) if facts else None


def _fact(one: tuple[set[str], str, str], two: tuple[set[str], str, str]) -> str:
    (names, own, shown), (there, prefix, other) = (one, two) if two[1] else (two, one)
    count = sum(prefix + name[len(own) :] in there for name in names if name.startswith(own))
    if own:
        return f"{count} names of {shown} under '{own}' are in {other} under '{prefix}'"
    share = "all" if count == len(names) else f"{count} of"
    return f"{share} {len(names)} names of {shown} are in {other} under '{prefix}'"


def _of_pair(one: set[str], two: set[str]) -> tuple[str, str] | None:
    """The prefix of each (or none) without which they have most names in common: at
    least half of those of the smaller one (if both have a prefix, nine of ten), and more than
    with it."""
    smaller, plain = min(len(one), len(two)), len(one & two)
    if plain == smaller:
        return None
    counts = {
        (left, right): len(without_left & without_right)
        for left, without_left in _stripped(one, smaller)
        for right, without_right in _stripped(two, smaller)
    }
    best = max(counts, key=lambda pair: (counts[pair], -len(pair[0]) - len(pair[1])))
    count = counts[best]
    if count <= plain or count < (0.9 if all(best) else 0.5) * smaller:
        return None
    # Behind 'encoder.' and 'decoder.' may be the same names: nobody knows which are meant.
    for rival in counts:
        sides = zip(best, rival, strict=True)
        apart = any(not (a.startswith(b) or b.startswith(a)) for a, b in sides)
        if counts[rival] == count and apart:
            return None
    return best


def _stripped(names: set[str], smaller: int) -> list[tuple[str, set[str]]]:
    return [
        (prefix, {name.removeprefix(prefix) for name in names})
        for prefix in ("", *leading(names, smaller / 2))
    ]


def leading(names: Iterable[str], least: float) -> list[str]:
    """The prefixes that at least so many names begin with, the most common first."""
    counts = Counter(name[: dot.end()] for name in names for dot in re.finditer(r"\.", name))
    common = [prefix for prefix, count in counts.items() if count >= least]
    return sorted(common, key=lambda prefix: (-counts[prefix], len(prefix)))[:_MOST]
