"""Whether checkpoints that are added to an average, or taken out of it, are in it already."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from swavg.engine.held import MOST, Held, held_in
from swavg.engine.origins import origins_of
from swavg.errors import RequestError, some
from swavg.formats.parts import open_whole
from swavg.methods.recorded import Earlier, is_number
from swavg.planning.row import Path
from swavg.series.model import labels
from swavg.series.names import counts_of
from swavg.storage.paths import normal

_LISTED = 4


def check_new(average: Earlier, new: Sequence[Path]) -> list[str]:
    """Warnings of checkpoints that look like one which the average holds, or of which it does not
    say whether it does; RequestError for those that it holds. An average of before this was
    recorded says nothing."""
    held = held_in(average.recipe)
    present, unknown, warnings = [], [], []
    for path, digits in _digits_of(new if held else (), average):
        matches = [entry for entry in held if entry.digits in digits]
        same = [entry.name for entry in matches if _is_the_same(path, entry)]
        if same:
            name = os.path.basename(path)
            known = name in map(os.path.basename, same)
            present.append(name if known else f"{name} (as {same[-1]})")
        elif matches:
            warnings.append(
                f"{labels([path])} looks like {matches[-1].name}, which {average.path} holds: it is"
                " added, for it has another name"
            )
        elif _is_cut(average, held) and not _is_later(path, held):
            unknown.append(path)
    if present:
        raise RequestError(
            f"{average.path} holds {some(present, _LISTED)} already.",
            hint="Leave out what it holds, or let it count once more with again=True.",
        )
    if unknown:
        warnings.append(
            f"{_listing_less(average)}: whether it holds {labels(unknown)} already is not known"
        )
    return warnings


def check_dropped(average: Earlier, old: Sequence[Path]) -> list[str]:
    """Warnings of checkpoints that are taken out of an average which does not hold them, as far as
    it says."""
    held = held_in(average.recipe)
    digits_held = {entry.digits for entry in held}
    missing = [
        path
        for path, digits in _digits_of(old if held else (), average)
        if not digits <= digits_held
    ]
    if missing and _is_cut(average, held):
        return [
            f"{_listing_less(average)}: whether it holds {labels(missing)}, which"
            f" {'is' if len(missing) == 1 else 'are'} dropped, is not known"
        ]
    return [f"{average.path} does not hold {labels([path])}, which is dropped" for path in missing]


def _is_cut(average: Earlier, held: Sequence[Held]) -> bool:
    """Whether it may hold more than it says."""
    n = average.recipe.get("n")
    return len(held) >= MOST or (is_number(n) and n > MOST)


def _listing_less(average: Earlier) -> str:
    return f"{average.path} says of the newest {MOST:,} checkpoints alone that it holds them"


def _is_later(path: str, held: Sequence[Held]) -> bool:
    """Whether a name says a later step than those of all."""
    here = counts_of(path)
    return bool(here) and all(
        (there := counts_of(entry.name)).keys() == here.keys()
        and all(there[unit] <= here[unit] for unit in here)
        and there != here
        for entry in held
    )


def _digits_of(paths: Sequence[Path], average: Earlier) -> Iterator[tuple[str, set[str]]]:
    """What each path stands for: itself, or what it is an average of."""
    names = [os.fspath(path) for path in paths]
    opened = [
        open_whole(path, key=average.key, shared=average.shared, of_parts=average.of_parts)
        for path in names
    ]
    for path, origin in zip(names, origins_of(opened, names), strict=True):
        yield path, {entry.digits for entry in origin.holds}


def _is_the_same(path: str, entry: Held) -> bool:
    """Whether a checkpoint of the same digits is the same. Where little is trained, others may have
    the same at some places: their names tell them apart."""
    here, there = counts_of(path), counts_of(entry.name)
    if here or there:
        return entry.whole or here == there
    return entry.whole or os.path.basename(normal(path)) == os.path.basename(entry.name)
