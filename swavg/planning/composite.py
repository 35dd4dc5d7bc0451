"""Inputs that are composites: as many rows for an output as there are parts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from swavg.errors import InputError, LoneTensorError, MismatchError, RequestError, some
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.composite import as_composite
from swavg.formats.part_names import matched
from swavg.formats.parts import OpenedComposite, open_parts
from swavg.formats.table import FORMATS
from swavg.formats.tensors import Shared
from swavg.planning.decide import Decisions
from swavg.planning.policy import Policy
from swavg.planning.row import Row
from swavg.planning.targets import Target, choose_target, default_path, names_file, writable
from swavg.storage.destination import is_stream

_LISTED = 6

T = TypeVar("T")
Outputs = Sequence[str | os.PathLike[str] | None]


def _decoded(outputs: Outputs) -> list[str | None]:
    return [None if output is None else os.fsdecode(output) for output in outputs]


@dataclass(frozen=True, slots=True)
class Singles:
    """Inputs that are one checkpoint each: as :class:`Parts`, of one part."""

    checkpoints: list[Checkpoint]
    count = 1

    @property
    def roots(self) -> tuple[str, ...]:
        return tuple(checkpoint.path for checkpoint in self.checkpoints)

    @property
    def wholes(self) -> list[Checkpoint]:
        return self.checkpoints

    @property
    def side_files(self) -> list[Mapping[str, str]]:
        return [checkpoint.extras.side_files for checkpoint in self.checkpoints]

    def of_inputs(self, values: Sequence[T]) -> list[T]:
        return list(values)

    def times(self, rows: Sequence[Row], outputs: Outputs) -> tuple[list[Row], list[str | None]]:
        return list(rows), _decoded(outputs)

    def target(self, path: str | None, row: Row, policy: Policy, *, force: bool) -> Target:
        first = self.checkpoints[row.members[0]]
        path = default_path(row.name, first, policy) if path == "" else path
        return choose_target(path, first, policy, name=row.name, force=force)

    def notes(self, rows: Sequence[Row]) -> tuple[str, ...]:
        return ()

    def warnings(self, rows: Sequence[Row]) -> tuple[str, ...]:
        return ()

    def part_of(self, number: int) -> None:
        return None

    def left_out(self, row: Row) -> list[str]:
        checkpoint = self.checkpoints[row.members[-1]]
        return [os.path.join(checkpoint.path, name) for name in checkpoint.extras.left_out]

    def check_averaged(self, rows: Sequence[Row], decided: Sequence[Decisions]) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of inputs that all are composites.

    ``names[i]`` are those of input ``i``, in one order for all. Its part ``j`` is checkpoint
    ``i * count + j``, and that of output ``r`` is row ``r * count + j``.
    """

    inputs: tuple[OpenedComposite, ...]
    names: tuple[tuple[str, ...], ...]

    @property
    def count(self) -> int:
        """How many parts each has."""
        return len(self.names[0])

    @property
    def roots(self) -> tuple[str, ...]:
        """The inputs' paths."""
        return tuple(each.composite.path for each in self.inputs)

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """All parts of the first input, of the second, ..."""
        return [
            each.parts[name]
            for each, names in zip(self.inputs, self.names, strict=True)
            for name in names
        ]

    @property
    def wholes(self) -> list[Checkpoint]:
        """The first part of each input, with the path and the files of all."""
        return [
            replace(
                next(iter(each.parts.values())),
                path=each.composite.path,
                sources=tuple(source for part in each.parts.values() for source in part.sources),
            )
            for each in self.inputs
        ]

    @property
    def side_files(self) -> list[Mapping[str, str]]:
        """What lies beside the weights of each input, its parts' files too: paths by name."""
        return [
            each.side_files
            | {
                os.path.join(name, own): path
                for name, part in each.parts.items()
                for own, path in part.extras.side_files.items()
            }
            for each in self.inputs
        ]

    def of_inputs(self, values: Sequence[T]) -> list[T]:
        """For each checkpoint the value of its input."""
        return [value for value in values for _ in range(self.count)]

    def times(self, rows: Sequence[Row], outputs: Outputs) -> tuple[list[Row], list[str | None]]:
        """A row for each part of each output."""
        count = self.count
        made = [
            replace(row, members=tuple(member * count + part for member in row.members))
            for row in rows
            for part in range(count)
        ]
        return made, [output for output in _decoded(outputs) for _ in range(count)]

    def target(self, path: str | None, row: Row, policy: Policy, *, force: bool) -> Target:
        """The output of a part in the folder ``path``, like that of the row's last member: with the
        first part go the files that belong to none. RequestError for a file's name."""
        number, part = divmod(row.members[-1], self.count)
        name, opened = self.names[number][part], self.inputs[number]
        checkpoint = opened.parts[name]
        file = path is None or is_stream(path) or names_file(path)
        if self.count == 1 and (file or (path == "" and not FORMATS[checkpoint.format].folder)):
            path = default_path(row.name, checkpoint, policy) if path == "" else path
            return choose_target(path, checkpoint, policy, name=row.name, force=force)
        if file:
            bare = os.path.splitext(path or row.name)[0]
            raise RequestError(
                f"{opened.composite.path} consists of {_listing(self.names[number])}, each averaged"
                " with its namesakes: that cannot be written to one file.",
                hint=f"Give the name of a folder with output='{bare}', or single files as inputs.",
            )
        if policy.format is not None:
            raise RequestError("Parts keep their formats: leave format= out.")
        if policy.max_shard_size is not None and not FORMATS[checkpoint.format].folder:
            raise RequestError(
                f"{checkpoint.path} is a part that stays one file: leave max_shard_size= out."
            )
        side = opened.side_files if part == 0 else {}
        bare = (path or row.name).rstrip("/") or "/"
        return Target(bare, writable(checkpoint.format), force, name, side)

    def part_of(self, number: int) -> str:
        """What part of its input a checkpoint is; empty for a folder's own weights."""
        return self.names[number // self.count][number % self.count]

    def left_out(self, row: Row) -> list[str]:
        """Paths of what the input that a row's output is like has, and the output has not."""
        number, part = divmod(row.members[-1], self.count)
        opened = self.inputs[number]
        own = opened.parts[self.names[number][part]]
        of_part = [os.path.join(own.path, name) for name in own.extras.left_out]
        return [*map(opened.composite.place, opened.composite.left_out), *of_part]

    def check_averaged(self, rows: Sequence[Row], decided: Sequence[Decisions]) -> None:
        """RequestError if globs leave nothing to average in any part of an output."""
        for first in range(0, len(decided), self.count):
            own = decided[first : first + self.count]
            if not rows[first].copies and all(
                made.op == "copy" for each in own for made in each.operations
            ):
                raise RequestError("include= and exclude= leave nothing to average in any part.")

    def warnings(self, rows: Sequence[Row]) -> Iterator[str]:
        """What is not averaged of what may be weights: files of a single tensor."""
        for number in dict.fromkeys(row.members[-1] // self.count for row in rows):
            without = self.inputs[number].without
            lone = [name for name, why in without.items() if isinstance(why, LoneTensorError)]
            if lone:
                base = os.path.basename(self.inputs[number].composite.path.rstrip("/"))
                listed = some(lone, _LISTED)
                yield (
                    f"not averaged but copied from {base}: {listed}. A file of a single tensor"
                    " gives it no name: save a dict of it"
                )

    def notes(self, rows: Sequence[Row]) -> Iterator[str]:
        """What becomes of files of the inputs that give their parts to outputs."""
        for number in dict.fromkeys(row.members[-1] // self.count for row in rows):
            opened = self.inputs[number]
            base = os.path.basename(opened.composite.path.rstrip("/"))
            without = [
                name for name, why in opened.without.items() if not isinstance(why, LoneTensorError)
            ]
            if without:
                listed = some(without, _LISTED)
                yield f"copied from {base}, as no weights are in them: {listed}"
            if "CKPT.yaml" in opened.side_files:
                yield f"metrics in CKPT.yaml are those of {base}"
            if opened.left_out:
                yield f"not copied from {base}: {some(opened.left_out, _LISTED)}"


def find_parts(paths: Sequence[str], policy: Policy, shared: Shared | None = None) -> Parts | None:
    """The parts of inputs that are composites; None if none is.

    A folder that is no checkpoint otherwise is taken for one. Raises InputError, MismatchError if
    they do not have the same parts, and RequestError for what is not done by part.
    """
    found = [as_composite(path) for path in paths]
    composites = [each for each in found if each is not None]
    if not composites:
        return None
    shared = Shared() if shared is None else shared
    opened = [open_parts(each, policy.key, shared) for each in composites]
    hint = f"Give one part of each, such as {composites[0].place(next(iter(opened[0].parts)))}."
    if policy.lora == "exact":
        raise RequestError("lora=exact takes single adapters, not folders of parts.", hint=hint)
    if len(composites) < len(paths):
        raise MismatchError(
            f"{composites[0].path} consists of {_listing([*opened[0].parts])}, and"
            f" {paths[found.index(None)]} is a single checkpoint.",
            hint=hint,
        )
    names = matched([each.parts for each in opened])
    if names is None:
        raise _unlike(opened)
    return Parts(tuple(opened), tuple(map(tuple, names)))


def _unlike(opened: Sequence[OpenedComposite]) -> MismatchError | InputError:
    """The error of composites whose parts do not correspond."""
    last = opened[-1]
    first = next(each for each in opened if matched([each.parts, last.parts]) is None)
    for one, other in ((first, last), (last, first)):
        for name in other.parts:
            if name in one.without:
                return one.without[name]
    facts = []
    for one, other in ((first, last), (last, first)):
        only = [name for name in one.parts if name not in other.parts]
        has = f"{one.composite.path} has {len(one.parts)}"
        facts.append(f"{has} ({some(only, _LISTED)} only there)" if only else has)
    return MismatchError(
        f"Parts of checkpoints are averaged with their namesakes, but {' and '.join(facts)}.",
        hint="Give checkpoints of the same parts: of one number of ranks, or of one kind of model."
        " To average single files, name them.",
    )


def _listing(names: Sequence[str]) -> str:
    listed = some([name or "." for name in names], _LISTED)
    return f"{len(names)} part{'s' * (len(names) != 1)} ({listed})"
