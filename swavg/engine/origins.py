"""What a recipe says of the inputs of an average, and of what these are averages of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from swavg.engine.held import Held, held_by, held_in
from swavg.engine.recipe import as_text, recorded_in
from swavg.engine.resources import Resources
from swavg.formats.checkpoint import Checkpoint
from swavg.planning.row import Row
from swavg.series.inside import facts_of
from swavg.series.model import Unit
from swavg.series.names import counts_of
from swavg.storage.fingerprints import digest_of_all, fingerprint
from swavg.storage.pool import Pool

_UNITS: tuple[Unit, ...] = ("step", "epoch", "number")
LATER = ("sizes", "steps", "epochs", "fingerprints", "digests", "lineage")
"""What recipes did not say at first."""
COMMON = ("method", "inputs", "weights", "holds", "options", "version", *LATER)
"""What recipes of all methods say; the rest are details of one."""
_ROOM = 60_000
"""Bytes of a recipe with the lineage: some formats have no place for more."""


class Origin(NamedTuple):
    """An input of which an average is made."""

    own: Held
    size: int
    """Bytes of its files."""
    counts: Mapping[Unit, int]
    recipe: Mapping[str, object]
    """What swavg recorded in it: how it was made, if it is an average itself."""
    digest: str | None = None
    """Of all its bytes, where that was asked for."""

    @property
    def holds(self) -> Sequence[Held]:
        """What it stands for: itself, or what it is an average of."""
        return held_in(self.recipe) or [self.own]


class Input(NamedTuple):
    """An input as a recipe tells of it; None for what it does not say."""

    name: str
    weight: object
    size: int | None = None
    step: int | None = None
    epoch: int | None = None
    digits: str | None = None
    """Its fingerprint, as :class:`swavg.engine.held.Held` has it."""
    digest: str | None = None
    """Of all its bytes."""


def origins_of(
    checkpoints: Sequence[Checkpoint],
    shown: Sequence[str],
    *,
    full: bool = False,
    on_read: Callable[[int, int | None], object] | None = None,
) -> list[Origin]:
    """What is to be said of each checkpoint; with ``full`` also a digest of all its bytes, and
    ``on_read`` is called with the bytes that were read for it, and those in all. InputError."""
    done, total = 0, sum(source.size for each in checkpoints for source in each.sources)

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if on_read is not None:
            on_read(done, total)

    with Pool() as pool:
        return [
            Origin(
                Held(*fingerprint(pool, each.sources), name),
                each.size,
                _counts(each),
                recorded_in(each),
                digest_of_all(pool, each.sources, Resources().workers, count) if full else None,
            )
            for each, name in zip(checkpoints, shown, strict=True)
        ]


def _counts(checkpoint: Checkpoint) -> Mapping[Unit, int]:
    extras = checkpoint.extras
    return {**facts_of(extras.scalars, extras.recipe).counts, **counts_of(checkpoint.path)}


def told_of(row: Row, origins: Sequence[Origin]) -> dict[str, object]:
    """What the recipe of a row says of its inputs, as plain values: their sizes, their steps (or
    epochs) if any is known, what the average holds, and their fingerprints where these are not
    those of what it holds. ``origins`` has all that the row's members count."""
    members = [origins[member] for member in row.members]
    unit = next((u for u in _UNITS if any(u in each.counts for each in members)), None)
    counts = [None if unit is None else each.counts.get(unit) for each in members]
    held = held_by(row, [each.holds for each in origins])
    own = [str(each.own) for each in members]
    return {
        "sizes": [each.size for each in members],
        **({} if unit is None else {"epochs" if unit == "epoch" else "steps": counts}),
        **({} if held == own else {"fingerprints": [each.own.fingerprint for each in members]}),
        **({"digests": [each.digest for each in members]} if members[0].digest else {}),
        "holds": held,
    }


def with_lineage(
    recipe: Mapping[str, object], row: Row, origins: Sequence[Origin]
) -> dict[str, object]:
    """The recipe, with those of the averages that are among its inputs, and of those among theirs:
    the nearest first, as many as there is room for."""
    lineage: dict[str, Mapping[str, object]] = {}
    room: int | None = None
    for entry in _ancestors([origins[member] for member in row.members]):
        digits = str(entry["fingerprint"])
        if digits not in lineage:
            room = _ROOM - len(as_text(recipe).encode()) if room is None else room
            room -= len(as_text(entry).encode()) + 2
            if room < 0:
                break
            lineage[digits] = entry
    return {**recipe, **({"lineage": [*lineage.values()]} if lineage else {})}


def _ancestors(members: Sequence[Origin]) -> Iterator[Mapping[str, object]]:
    averages = [each for each in members if inputs_in(each.recipe)]
    for each in averages:
        made = {k: v for k, v in each.recipe.items() if k not in ("lineage", "holds", "version")}
        digits = [entry.digits for entry in inputs_in(each.recipe)]
        known = {} if None in digits else {"fingerprints": digits}
        yield {"fingerprint": each.own.digits, **made, **known}
    for each in averages:
        yield from lineage_in(each.recipe)


def lineage_in(recipe: Mapping[str, object]) -> list[Mapping[str, object]]:
    """The recipes of averages that are behind an average, as its own says: each with the
    ``fingerprint`` of what it made."""
    entries = recipe.get("lineage")
    return [
        entry
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict) and isinstance(entry.get("fingerprint"), str)
    ]


def inputs_in(recipe: Mapping[str, object]) -> list[Input]:
    """The inputs of an average, as its recipe says; empty if it says nothing."""
    names = _texts(recipe.get("inputs"))
    weights, sizes, steps, epochs, digests = (
        _column(recipe, key, len(names))
        for key in ("weights", "sizes", "steps", "epochs", "digests")
    )
    return [
        Input(
            name,
            weights[at],
            _count(sizes[at]),
            _count(steps[at]),
            _count(epochs[at]),
            digits,
            None if digests[at] is None else str(digests[at]),
        )
        for at, (name, digits) in enumerate(zip(names, _digits(recipe, names), strict=True))
    ]


def _count(value: object) -> int | None:
    return value if type(value) is int else None


def _texts(values: object) -> list[str]:
    return [*map(str, values)] if isinstance(values, list) else []


def _column(recipe: Mapping[str, object], key: str, count: int) -> Sequence[object]:
    values = recipe.get(key)
    return values if isinstance(values, list) and len(values) == count else [None] * count


def _digits(recipe: Mapping[str, object], names: Sequence[str]) -> Sequence[str | None]:
    told = _texts(recipe.get("fingerprints"))
    if len(told) == len(names):
        return [text.removeprefix("~") for text in told]
    held = held_in(recipe)
    # Recipes that are older say this of all that the inputs stand for.
    alike = "sizes" in recipe or [each.name for each in held] == [*names]
    if "fingerprints" not in recipe and len(held) == len(names) and alike:
        return [each.digits for each in held]
    return [None] * len(names)


def as_before(recipe: Mapping[str, object]) -> dict[str, object]:
    """The recipe without what recipes did not say at first."""
    return {key: value for key, value in recipe.items() if key not in LATER}
