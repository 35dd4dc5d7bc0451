"""The tensors of several checkpoints side by side, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from swavg.formats.checkpoint import Checkpoint
from swavg.formats.tensors import Form, TensorTable
from swavg.planning.prefixes import Prefixes, behind_prefix
from swavg.planning.ties import declared_ties, found_ties

WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod", "module")
"""Parts of names that wrappers add: FSDP, activation checkpointing, torch.compile, data parallel
training. A model may have modules called ``module``, never one of the other names."""

Spelling = Callable[[str], str]


def canonical(name: str) -> str:
    """The name without what wrappers add, anywhere before its last part."""
    if "module." not in name and "_orig_mod." not in name:
        return name
    *path, last = name.split(".")
    return ".".join([*(part for part in path if part not in WRAPPERS), last])


def unwrapped(name: str) -> str:
    """The name without what is of wrappers for certain: ``module`` is in front only."""
    path, last = name.split(".")[:-1], name.rpartition(".")[2]
    path = [part for part in path if part == "module" or part not in WRAPPERS]
    own = next((at for at, part in enumerate(path) if part != "module"), len(path))
    return ".".join([*path[own:], last])


def spelling(*names: Sequence[str]) -> Spelling:
    """How the ``names`` of several checkpoints (or a model) are compared, all in one way.

    Wrappers do not count, but for those that keep two names of one checkpoint apart: then only a
    leading ``module`` does not count, and if that is not enough, names stay as they are.
    """
    texts = map("\n".join, names)
    if not any("module." in text or "_orig_mod." in text for text in texts):
        return str
    for spell in (canonical, unwrapped):
        if all(len(set(map(spell, own))) == len(own) for own in names):
            return spell
    return str


def numbered(table: TensorTable, spell: Spelling | None = None) -> Mapping[str, int]:
    """The number of each tensor by canonical name, as ``spell`` makes it; alone (None) names that
    would collide stay apart."""
    spell = spelling(table.columns.names) if spell is None else spell
    if spell is str:
        return table.index
    return {spell(name): number for number, name in enumerate(table.columns.names)}


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
    checkpoint that has them; ``found`` are those among them that no file declares. ``spell`` makes
    a name canonical here.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint]) -> None:
        self.tables, self.table_of = distinct_tables(checkpoints)
        self.spell = spelling(*(table.columns.names for table in self.tables))
        self._numbers = [numbered(table, self.spell) for table in self.tables]
        numbers = [self._numbers[place] for place in self.table_of]
        self.ties = declared_ties(checkpoints, numbers, self.spell)
        self.found = found_ties(checkpoints, numbers, self.ties)
        for group in self.found:
            self.ties = [*(tie for tie in self.ties if not set(tie) <= set(group)), group]
        self._tied = {name: group for group in self.ties for name in group}

    def names(self) -> list[str]:
        """All canonical names: the last checkpoint's in its order, then those of earlier ones, but
        for what the last one leaves out as it has the same under another name."""
        found: dict[str, None] = {}
        for place in dict.fromkeys(reversed(self.table_of)):
            found.update(dict.fromkeys(self._numbers[place]))
        last = self._numbers[self.table_of[-1]]
        for group in self.found:
            if not last.keys().isdisjoint(group):
                for name in set(group) - last.keys():
                    del found[name]
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

    def prefixes(self, shown: Sequence[str]) -> Prefixes | None:
        """The prefixes that keep names of the checkpoints, which are ``shown`` so, apart."""
        places = sorted(range(len(self.tables)), key=self.table_of[::-1].index, reverse=True)
        firsts = [shown[self.table_of.index(place)] for place in places]
        return behind_prefix([self._numbers[place] for place in places], firsts)

    def warnings(self, shown: Sequence[str]) -> list[str]:
        """What keeps most names apart though it is only a prefix, in words."""
        found = self.prefixes(shown)
        if found is None:
            return []
        return [f"{found.fact}, and are not averaged with them. {found.hint}"]

    def notes(self) -> list[str]:
        """What was taken as tied though no file says so."""
        return [
            f"{', '.join(map(repr, group))} have the same bytes wherever they stand together, and"
            " some inputs leave some of them out: taken as one tied tensor"
            for group in self.found
        ]

    def spellings(self, name: str) -> set[str]:
        """A canonical name, and what it is called in each checkpoint that has it."""
        return {name} | {
            table.columns.names[numbers[name]]
            for table, numbers in zip(self.tables, self._numbers, strict=True)
            if name in numbers
        }

    def form(self, place: int, number: int) -> Form:
        """Dtype, shape and strides of a tensor."""
        return self.tables[place].form_of(number)
