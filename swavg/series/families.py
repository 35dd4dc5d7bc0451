"""Families of files: names in a folder that differ in the numbers of their steps alone."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import combinations

from swavg.series.model import Unit
from swavg.series.names import DATE, NameFacts, read_name, split_suffixes, with_stars

_NUMBER = re.compile(r"(?<![A-Za-z\d])(?<!\d\.)\d{1,9}(?![A-Za-z\d])(?!\.\d)")
_GAP = re.compile(r"[-_=. ]+")
_NO_STEP = re.compile(
    r"(?:avg|average|ave|batch|best|block|bs|cv|dim|expert|fold|gpu|last|layer|lr|nbest|node|of|part"
    r"|rank|rep|replica|run|seed|shard|size|split|stage|top|trial|v|version|worker)",
    re.IGNORECASE,
)
"""Words beside a number that is no step."""
_ROLE = re.compile(
    r"(?<![A-Za-z])(?:(?:net_?)?(?:gen|disc|generator|discriminator|critic)|net_?[gd]"
    r"|actor|encoder|decoder)(?![A-Za-z])",
    re.IGNORECASE,
)
"""Words for one of several networks that are trained together."""
_ROLE_LETTER = re.compile(r"(?<![A-Za-z])[GD](?![A-Za-z])")
_COPY = re.compile(r"(?<![A-Za-z])(?:best|last|latest|final|current)(?![A-Za-z])", re.IGNORECASE)
_RUN = re.compile(
    r"(?<![A-Za-z])(?:(?P<fold>k?fold|cv|split)|seed|run|exp|trial)(?:[-_=]?\d+|[-_=][A-Z])"
    r"(?![A-Za-z\d])",
    re.IGNORECASE,
)
_STEP = re.compile(
    r"(?:[-_.](?:global_?step|steps?|iterations?|iters?|epochs?|ep|batch))?[-_.=]?\*", re.IGNORECASE
)
"""What the end of a run lacks in its name: ``lora.safetensors`` beside ``lora-*.safetensors``."""


def read_names(names: Sequence[str]) -> list[NameFacts]:
    """What names in one folder say, also beside each other.

    A number that alone tells some apart is their step (``net_g_1000.pth``, ``net_g_2000.pth``);
    where only the role differs it may be the same (``net_d_1000.pth``). ``net_g_latest.pth`` is
    then a copy.
    """
    read = [read_name(name) for name in names]
    numbered = [[] if facts.counts else list(_numbers(name)) for name, facts in _zip(names, read)]
    sizes: dict[str, int] = {}
    for own in numbered:
        for family, _ in own:
            sizes[_role_free(family)] = sizes.get(_role_free(family), 0) + 1
    families = set()
    # One number is a step too, beside what its run left at the end.
    ends = {*map(glob.escape, names)}
    for place, own in enumerate(numbered):
        counted = next(
            (
                (family, number)
                for family, number in own
                if sizes[_role_free(family)] > 1 or _STEP.sub("", family) in ends
            ),
            None,
        )
        if counted is not None:
            family, number = counted
            families.add(_role_free(family))
            counts: dict[Unit, int] = {"number": number}
            read[place] = replace(read[place], counts=counts, is_copy=False, family=family)
    return [
        replace(facts, is_copy=facts.is_copy or _is_copy(name, families))
        if families and not facts.counts
        else facts
        for name, facts in _zip(names, read)
    ]


def _zip(names: Sequence[str], read: Sequence[NameFacts]) -> Iterator[tuple[str, NameFacts]]:
    return zip(names, read, strict=True)


def _numbers(name: str) -> Iterator[tuple[str, int]]:
    """Numbers in a name that may be its step, the last first, with the family it would be of."""
    stem, _ = split_suffixes(name)
    for match in reversed(list(_NUMBER.finditer(stem))):
        before = _GAP.split(stem[: match.start()])[-2:-1]
        after = _GAP.split(stem[match.end() :])[1:2]
        beside = [word for word in (*before, *after) if word]
        if beside and not DATE.fullmatch(match[0]) and not any(map(_NO_STEP.fullmatch, beside)):
            yield with_stars(name, [match.span()]), int(match[0])


def _role_free(family: str) -> str:
    text = _ROLE.sub("?", family)
    # Without a step it is a letter among others.
    return _ROLE_LETTER.sub("?", text) if "*" in family else text


def _is_copy(name: str, families: Collection[str]) -> bool:
    return any(
        _role_free(with_stars(name, [word.span()])) in families for word in _COPY.finditer(name)
    )


def is_end(name: str, families: Collection[str]) -> bool:
    """Whether a name is that of a family without any step: what a run left at its end."""
    return any(glob.escape(name) == _STEP.sub("", family) for family in families)


def pattern_for(family: str, names: Sequence[str], others: Sequence[str]) -> str | None:
    """A glob for the names of a family that matches none of the others, if one does."""
    for pattern in _patterns(family):
        own = all(fnmatchcase(name, pattern) for name in names)
        if own and not any(fnmatchcase(name, pattern) for name in others):
            return pattern
    return None


def _patterns(family: str) -> Iterator[str]:
    first, star, rest = family.partition("*")
    before, _, last = family.rpartition("*")
    yield family
    if star:
        yield f"{first}[0-9]*{rest}"
        yield f"{before}*[0-9]{last}"
        # Not a second version of it (-v1).
        yield f"{before[:-1]}*[!v][0-9]{last}"


def members(names: Sequence[str]) -> dict[str, dict[str, NameFacts]]:
    """The names of each family; one without a step is a family of its own."""
    found: dict[str, dict[str, NameFacts]] = {}
    for name, facts in _zip(names, read_names(names)):
        found.setdefault(facts.family or glob.escape(name), {})[name] = facts
    return found


def kinds(names: Sequence[str]) -> list[str]:
    """Families among names in one folder that share steps, and so may be of several networks: two
    steps, or one where only their roles differ (``generator``, ``discriminator``)."""
    families = members(names)
    steps = {
        family: {frozenset(facts.counts.items()) for facts in own.values()}
        for family, own in families.items()
    }
    mixed: dict[str, None] = {}
    by_role: dict[str, list[str]] = {}
    for family in families:
        by_role.setdefault(_role_free(family), []).append(family)
    several = [family for family, own in steps.items() if len(own) > 1]
    groups = ((2, several), *((1, own) for own in by_role.values()))
    for least, group in groups:
        for one, other in combinations(group, 2):
            if len(steps[one] & steps[other]) >= least:
                mixed |= {one: None, other: None}
    return [*mixed]


def runs(paths: Sequence[str]) -> list[str]:
    """What in the names, or in those of their folders, says that they are snapshots or ends of
    several runs (``fold0``, ``seed=1``). Variants that are called nothing but that are a soup."""
    several: dict[str, None] = {}
    for path in paths:
        folder, name = os.path.split(path)
        run = _RUN.search(f"{os.path.basename(folder)}/{name}")
        if run is not None and (run["fold"] or read_name(name).counts or _COPY.search(name)):
            several[run[0]] = None
    return [*several] if len(several) > 1 else []
