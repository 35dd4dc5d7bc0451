"""Globs over the names of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import filter as matching
from fnmatch import fnmatchcase
from itertools import islice

from swavg.errors import RequestError, did_you_mean
from swavg.formats.part_names import in_whole
from swavg.planning.match import SideBySide, spelling
from swavg.planning.policy import Policy

_MOST = 10_000


def check_globs(
    names: Sequence[Sequence[str]],
    include: Sequence[str],
    exclude: Sequence[str] = (),
    parts: Sequence[str] = (),
) -> None:
    """RequestError, with the nearest name, for a glob that matches none of the ``names`` of any
    checkpoint: neither as they are written there nor without what wrappers add. ``parts``: what
    part of a composite each is, whose name may stand before."""
    if not include and not exclude:
        return
    spell = spelling(*names)
    spelled = dict.fromkeys(spell(name) for own in names for name in own)
    written = dict.fromkeys((*spelled, *(name for own in names for name in own)))
    for part, own in zip(parts, names, strict=bool(parts)):
        written |= dict.fromkeys(
            in_whole(part, text) for name in own for text in (spell(name), name)
        )
    for argument, globs in (("include", include), ("exclude", exclude)):
        for glob in globs:
            if not matching(written, glob):
                near = did_you_mean(glob, islice(dict.fromkeys(_globs(written, glob)), _MOST))
                raise RequestError(
                    f"'{glob}' matches none of {len(spelled):,} tensors.",
                    argument=argument,
                    hint=near or (f"Names look like '{next(iter(written))}'." if written else None),
                )


def selection(match: SideBySide, policy: Policy, part: str = "") -> Callable[[str], bool]:
    """Tells whether the globs leave a canonical name (or one tied to it) to be averaged, as it is
    or behind the name of its ``part``."""
    include, exclude = policy.include, policy.exclude

    def matches(name: str) -> bool:
        candidates = match.spellings(name)
        if part:
            candidates |= {in_whole(part, text) for text in candidates}

        def any_glob(globs: Sequence[str]) -> bool:
            return any(fnmatchcase(text, glob) for text in candidates for glob in globs)

        return (not include or any_glob(include)) and not any_glob(exclude)

    if not include and not exclude:
        return lambda name: True
    return lambda name: any(map(matches, match.tied_to(name)))


def _globs(names: Iterable[str], like: str) -> Iterator[str]:
    """Globs of the same kind that match some of the ``names``."""
    for name in names:
        if "*" not in like:
            yield name
        parts = name.split(".")
        for cut in range(len(parts)):
            if like.endswith("*"):
                yield ".".join(parts[: cut + 1]) + (".*" if like.endswith(".*") else "*")
            if like.startswith("*"):
                yield ("*." if like.startswith("*.") else "*") + ".".join(parts[cut:])
