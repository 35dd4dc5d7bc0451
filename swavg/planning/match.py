"""The tensors of several checkpoints side by side, by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from swavg.formats.checkpoint import Checkpoint, Columns, Form, Tensor, TensorTable
from swavg.storage.sources import Pool


def canonical(name: str) -> str:
    """The name without what wrappers add: ``module.`` in front (DataParallel), ``_orig_mod.``
    anywhere (torch.compile)."""
    if "_orig_mod." in name:
        name = (
            "".join(part + "." for part in name.split(".")[:-1] if part != "_orig_mod")
            + name.rsplit(".", 1)[-1]
        )
    while name.startswith("module."):
        name = name[len("module.") :]
    return name


def by_canonical_name(names: Sequence[str]) -> dict[str, str]:
    """Canonical names to actual ones; names that would collide stay as they are."""
    found = {canonical(name): name for name in names}
    return found if len(found) == len(names) else {name: name for name in names}


def distinct_tables(
    checkpoints: Sequence[Checkpoint],
) -> tuple[tuple[TensorTable, ...], tuple[int, ...]]:
    """The tables of tensors that differ, and which of them each checkpoint has."""
    tables: list[TensorTable] = []
    places: dict[int, int] = {}
    table_of = []
    for checkpoint in checkpoints:
        place = places.setdefault(id(checkpoint.tensors.columns), len(tables))
        if place == len(tables):
            tables.append(checkpoint.tensors)
        table_of.append(place)
    return tuple(tables), tuple(table_of)


class SideBySide:
    """Checkpoints, matched by canonical name.

    Those of one run have equal columns, and are matched once: ``tables`` are the distinct ones,
    ``table_of[i]`` says which is checkpoint ``i``'s. A column of the match is a number per table:
    the tensor's there, or -1. ``ties`` are groups of canonical names that are one tensor in every
    checkpoint that has them.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint]) -> None:
        self.tables, self.table_of = distinct_tables(checkpoints)
        self._numbers = [_numbers(table.columns) for table in self.tables]
        self.ties = _confirmed_ties(checkpoints, self._numbers, self.table_of)
        self._tied = {name: group for group in self.ties for name in group}

    def names(self) -> list[str]:
        """All canonical names: the last checkpoint's in its order, then those of earlier ones."""
        found: dict[str, None] = {}
        for place in dict.fromkeys(reversed(self.table_of)):
            found.update(dict.fromkeys(self._numbers[place]))
        return list(found)

    def columns(self, names: Sequence[str]) -> Iterator[tuple[int, ...]]:
        """For each name the tensor's number in each table, through a tied partner if need be."""
        if len(self.tables) == 1 and not self.ties:
            numbers = self._numbers[0]
            return ((numbers[name],) for name in names)
        return (
            tuple(self._number(place, name) for place in range(len(self.tables))) for name in names
        )

    def _number(self, place: int, name: str) -> int:
        numbers = self._numbers[place]
        if name in numbers:
            return numbers[name]
        return next((numbers[tied] for tied in self.tied_to(name) if tied in numbers), -1)

    def tied_to(self, name: str) -> tuple[str, ...]:
        """The group that a name is tied in; itself alone if it is in none."""
        return self._tied.get(name, (name,))

    def output_name(self, name: str) -> str:
        """The name in the last checkpoint that has it."""
        for place in dict.fromkeys(reversed(self.table_of)):
            number = self._numbers[place].get(name)
            if number is not None:
                return self.tables[place].columns.names[number]
        return name

    def form(self, place: int, number: int) -> Form:
        """Dtype, shape and strides of a tensor."""
        return self.tables[place].form_of(number)


def _numbers(columns: Columns) -> dict[str, int]:
    names = columns.names
    found = {canonical(name): number for number, name in enumerate(names)}
    return found if len(found) == len(names) else {name: n for n, name in enumerate(names)}


def _confirmed_ties(
    checkpoints: Sequence[Checkpoint], numbers: Sequence[dict[str, int]], table_of: Sequence[int]
) -> list[tuple[str, ...]]:
    """Groups of canonical names that are one tensor in every checkpoint that has them.

    A tie that one checkpoint declares (a .pt, by sharing storage) is looked up in the others;
    where a format cannot tell, the bytes are compared.
    """
    candidates: dict[tuple[str, ...], None] = {}
    taken: set[str] = set()
    for checkpoint, place in zip(reversed(checkpoints), reversed(table_of), strict=True):
        for group in checkpoint.ties:
            names = tuple(n if n in numbers[place] else canonical(n) for n in group)
            if taken.isdisjoint(names):
                candidates[names] = None
                taken.update(names)
    if not candidates:
        return []
    with Pool() as pool:
        return [
            group
            for group in candidates
            if all(
                _is_tied(
                    pool, checkpoint, [numbers[place][n] for n in group if n in numbers[place]]
                )
                for checkpoint, place in zip(checkpoints, table_of, strict=True)
            )
        ]


def _is_tied(pool: Pool, checkpoint: Checkpoint, numbers: Sequence[int]) -> bool:
    tensors = [checkpoint.tensors.at(number) for number in numbers]
    return all(_same_bytes(pool, checkpoint, tensors[0], other) for other in tensors[1:])


def _same_bytes(pool: Pool, checkpoint: Checkpoint, one: Tensor, other: Tensor) -> bool:
    if (one.spec.dtype, one.spec.shape) != (other.spec.dtype, other.spec.shape):
        return False
    if one.boxes == other.boxes:
        return True
    if one.single is None or other.single is None or one.single.strides or other.single.strides:
        return False
    step = 1 << 20
    for start in range(0, one.spec.nbytes, step):
        size = min(step, one.spec.nbytes - start)
        first, second = (
            pool.read(checkpoint.sources[box.source], box.offset + start, size)
            for box in (one.single, other.single)
        )
        if first != second:
            return False
    return True
