"""In what two checkpoints differ."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from swavg.analysis.figures import Distance, jsonable
from swavg.engine.recipe import short_names
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.parts import open_whole
from swavg.formats.tensors import Shared
from swavg.planning.match import WRAPPERS, Spelling, spelling
from swavg.planning.prefixes import behind_prefix
from swavg.planning.rename import renamed, rules
from swavg.short_repr import ShortRepr

if TYPE_CHECKING:
    from swavg.analysis.chunks import OnProgress

_NAMED = 6


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A tensor that both have, with another dtype or shape: A's and B's."""

    name: str
    dtypes: tuple[str, str]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True, repr=False)
class Comparison(ShortRepr):
    """In what checkpoints A and B differ, by canonical names.

    ``tensors`` counts those of each; ``matching`` those alike in name, shape and dtype.
    ``distances`` (None: the values were not read) has every tensor that both have in one shape, the
    farthest first, and ``total`` sums the floats among them (steps and positions would drown them),
    ties once.
    """

    a: str
    b: str
    tensors: tuple[int, int]
    matching: int
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    mismatches: tuple[Mismatch, ...]
    distances: tuple[Distance, ...] | None
    total: Distance | None
    notes: tuple[str, ...]

    @property
    def same(self) -> bool | None:
        """True if names, shapes, dtypes and all values are the same; None if but for the values,
        which were not read, nothing differs."""
        if not self.same_keys:
            return False
        if self.distances is None:
            return None
        return self.identical == len(self.distances)

    @property
    def same_keys(self) -> bool:
        """True if names, shapes and dtypes are the same."""
        return not (self.only_in_a or self.only_in_b or self.mismatches)

    @property
    def identical(self) -> int:
        """Tensors of equal values."""
        return sum(not each.differing for each in self.distances or ())

    def to_json(self) -> dict[str, object]:
        """Plain values for ``json.dumps``; floats that JSON lacks become None."""
        fields = {name: jsonable(value) for name, value in asdict(self).items()}
        counted = {} if self.distances is None else {"identical": self.identical}
        return {"same": self.same, **fields, **counted}


def diff(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    key: str | None = None,
    strip_prefix: Sequence[str] = (),
    values: bool = True,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """In what the checkpoints ``a`` and ``b`` differ: names, shapes, dtypes, and how far the
    tensors lie apart. Without ``values`` only headers are read. ``key`` is the dotted path of the
    state dict in PyTorch files.

    What wrappers put into names (``_orig_mod.``, say) does not count, nor a ``strip_prefix`` that
    they begin with. Raises InputError.
    """
    # Imports NumPy.
    from swavg.planning.siblings import with_common_siblings

    paths = [os.fspath(a), os.fspath(b)]
    shared = Shared()
    opened = [open_whole(path, key=key, shared=shared) for path in paths]
    one, other = with_common_siblings(renamed(opened, rules(strip_prefix)))
    shown = short_names(paths)
    spell = spelling(one.tensors.columns.names, other.tensors.columns.names)
    names = [{spell(name): name for name in checkpoint} for checkpoint in (one, other)]
    both = {
        name: (one.tensors[actual], other.tensors[names[1][name]])
        for name, actual in names[0].items()
        if name in names[1]
    }
    mismatches = tuple(
        Mismatch(name, (x.dtype.name, y.dtype.name), (x.shape, y.shape))
        for name, (left, right) in both.items()
        for x, y in [(left.spec, right.spec)]
        if (x.dtype.name, x.shape) != (y.dtype.name, y.shape)
    )
    lacking = [tuple(n for n in names[i] if n not in names[1 - i]) for i in (0, 1)]
    notes = [
        note
        for i, checkpoint in enumerate((one, other))
        for note in (
            *(f"{shown[i]}: {note}" for note in checkpoint.notes),
            *_wrapper_notes(shown[i], names[i]),
            *_tie_notes(checkpoint, spell, lacking[i], names[1 - i], shown[1 - i]),
        )
    ]
    if rest := _not_compared(one, other):
        notes.append(f"not compared: {', '.join(rest)}")
    if found := behind_prefix(names, shown):
        notes.append(f"{found.fact}. {found.hint}")
    distances, summed = None, None
    if values:
        alike = {
            name: pair for name, pair in both.items() if pair[0].spec.shape == pair[1].spec.shape
        }
        from swavg.analysis.products import distances_of

        distances, summed = distances_of(one, other, alike, on_progress)
    return Comparison(
        shown[0],
        shown[1],
        (len(one), len(other)),
        len(both) - len(mismatches),
        lacking[0],
        lacking[1],
        mismatches,
        distances,
        summed,
        tuple(notes),
    )


def _not_compared(one: Checkpoint, other: Checkpoint) -> list[str]:
    """What else the files hold, by name, cut where it is long."""
    rest = [
        name
        for extras in (one.extras, other.extras)
        for name in (*extras.others, *extras.non_tensors)
        if not any(f"{path}.".startswith(f"{name}.") for path in extras.joined)
    ]
    names = [*dict.fromkeys(rest)]
    return names if len(names) <= _NAMED else [*names[:_NAMED], "..."]


def _wrapper_notes(shown: str, names: Mapping[str, str]) -> Iterator[str]:
    wrapped = [actual for name, actual in names.items() if name != actual]
    for wrapper in reversed(WRAPPERS):
        count = sum(f".{wrapper}." in f".{actual}" for actual in wrapped)
        if count:
            yield f"{shown}: '{wrapper}.' in {count} names does not count"


def _tie_notes(
    checkpoint: Checkpoint,
    spell: Spelling,
    lacking: Sequence[str],
    there: Mapping[str, str],
    shown: str,
) -> Iterator[str]:
    for group in checkpoint.ties:
        members = [spell(name) for name in group]
        partner = next((name for name in members if name in there), None)
        for name in members:
            if partner is not None and name in lacking:
                yield f"'{name}', which {shown} lacks, is tied to '{partner}', which it has"
