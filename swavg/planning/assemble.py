"""From what was decided for each row, and where each format puts it, to the columns of a plan."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter

from swavg.dtypes import BY_NAME
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.layout import FileLayout, Kept, Layout
from swavg.formats.tensors import Shape, TensorTable
from swavg.planning import decide
from swavg.planning.batch_norm import running_statistics
from swavg.planning.decide import Decisions
from swavg.planning.entries import Entries, Operation, Term
from swavg.planning.match import distinct_tables
from swavg.planning.plan import File, Output
from swavg.planning.row import Row
from swavg.planning.targets import Target

_BYTES = BY_NAME["uint8"]


class Assembly:
    """Entries of all rows, each made once for the rows that share it.

    Rows share an entry only where shape, dtype, operation, accumulator and order in storage are
    equal in each row alone, so that none changes the bits of another.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint]) -> None:
        self._operations: dict[Operation, int] = {}
        self._operation = array("I")
        self._forms: dict[tuple[Shape, Shape | None], int] = {}
        self._form = array("I")
        self._tables, self._table_of = distinct_tables(checkpoints)
        self._numbers = [array("q") for _ in self._tables]
        self._by_name: dict[tuple[str | None, str], int] = {}
        self._by_bytes: dict[tuple[int, int, int, int], int] = {}
        self._merged: dict[tuple[int, Operation], Operation | None] = {}

    def entries(self) -> Entries:
        return Entries(
            tuple(self._operations),
            self._operation,
            tuple(self._forms),
            self._form,
            self._tables,
            self._table_of,
            tuple(self._numbers),
        )

    def output(
        self,
        number: int,
        row: Row,
        decisions: Decisions,
        target: Target,
        layout: Layout,
        *,
        alone: bool,
    ) -> Output:
        """Row ``number``'s output. ``alone``: there is no other row to share with."""
        part = target.part
        entry_of = self._entries_of(number, row, decisions, layout, part, alone)
        template = row.members[-1]
        files = tuple(self._file(number, template, file, entry_of) for file in layout.layouts)
        home = array("i", [-1]) * len(self._form)
        starts, region = [], 0
        for file in files:
            starts.append(region)
            for entry in file.entries:
                if home[entry] < 0:
                    home[entry] = region
                region += 1
        return Output(
            target,
            files,
            dict(layout.files),
            dict(layout.side_files),
            home,
            tuple(starts),
            decisions.ties,
            decisions.not_averaged,
            layout.notes,
            _counts(decisions),
            sum(map(_numels(decisions).__getitem__, decisions.specs.form)),
            _running_statistics(decisions),
            layout.warnings,
        )

    def _entries_of(
        self,
        number: int,
        row: Row,
        decisions: Decisions,
        layout: Layout,
        part: str | None,
        alone: bool,
    ) -> array[int]:
        """The entry of each tensor of a row; one that is not written, as it is tied, has none."""
        orders = {n: order for file in layout.layouts for n, order in file.orders.items()}
        written = bytearray(len(decisions.specs))
        for file in layout.layouts:
            for tensor in file.tensors:
                written[tensor] = 1
        specs = decisions.specs
        own = [_own(number, row, operation) for operation in decisions.operations]
        interned = [self._intern(operation) for operation in own]
        places = [self._place(table) for table in decisions.tables]
        forms = [self._form_of(shape, None) for _, shape in specs.forms]
        found = array("I")
        numbers = [-1] * len(self._tables)
        for at, (name, form, made) in enumerate(
            zip(specs.names, specs.form, decisions.operation, strict=True)
        ):
            if not written[at]:
                found.append(0)
                continue
            own_form = forms[form]
            if orders and (order := orders.get(at)) is not None:
                shape = specs.forms[form][1]
                own_form = self._form_of(tuple(shape[axis] for axis in order), order)
            for place, column in zip(places, decisions.numbers, strict=True):
                numbers[place] = column[at]
            shared = None if alone else self._shared((part, name), own[made], own_form, numbers)
            if shared is None:
                shared = self._add(interned[made], own_form, numbers)
                if not alone:
                    self._by_name.setdefault((part, name), shared)
            found.append(shared)
        return found

    def _form_of(self, shape: Shape, order: Shape | None) -> int:
        return self._forms.setdefault((shape, order), len(self._forms))

    def _intern(self, operation: Operation) -> int:
        return self._operations.setdefault(operation, len(self._operations))

    def _place(self, table: TensorTable) -> int:
        return next(at for at, own in enumerate(self._tables) if own.columns is table.columns)

    def _add(self, operation: int, form: int, numbers: Sequence[int]) -> int:
        self._operation.append(operation)
        self._form.append(form)
        for column, at in zip(self._numbers, numbers, strict=True):
            column.append(at)
        return len(self._form) - 1

    def _shared(
        self,
        name: tuple[str | None, str],
        operation: Operation,
        form: int,
        numbers: Sequence[int],
    ) -> int | None:
        """The entry of an earlier row (of the same part) that serves this one too."""
        entry = self._by_name.get(name)
        if entry is None or self._form[entry] != form:
            return None
        columns = list(zip(self._numbers, numbers, strict=True))
        if any(at >= 0 and column[entry] not in (-1, at) for column, at in columns):
            return None
        key = self._operation[entry], operation
        if key not in self._merged:
            self._merged[key] = _merged(list(self._operations)[key[0]], operation)
        merged = self._merged[key]
        if merged is None:
            return None
        self._operation[entry] = self._intern(merged)
        for column, at in columns:
            column[entry] = max(column[entry], at)
        return entry

    def _file(
        self, number: int, template: int, layout: FileLayout, entry_of: Sequence[int]
    ) -> File:
        sizes = layout.specs.sizes
        regions = [
            (offset, sizes[tensor], entry_of[tensor], tensor, layout.parts.get(at))
            for at, (offset, tensor) in enumerate(zip(layout.offsets, layout.tensors, strict=True))
        ]
        for kept in layout.kept:
            entry = self._bytes(number, template, kept)
            regions.append((kept.offset, kept.nbytes, entry, -1, None))
        # Of several that begin at one byte all but the last are empty: a task looks no further.
        regions.sort(key=itemgetter(0, 1, 2, 3))
        offsets = array("q", [offset for offset, *_ in regions])
        return File(
            layout,
            # Mostly the layout's own: one array serves both.
            layout.offsets if offsets == layout.offsets else offsets,
            array("I", [entry for _, _, entry, _, _ in regions]),
            array("i", [tensor for _, _, _, tensor, _ in regions]),
            {at: part for at, (*_, part) in enumerate(regions) if part is not None},
        )

    def _bytes(self, number: int, template: int, kept: Kept) -> int:
        """The entry of bytes of a template."""
        key = template, kept.source, kept.start, kept.nbytes
        form = self._form_of((kept.nbytes,), None)
        terms = (Term(number, (0,), (1.0,), True),)
        operation = Operation("bytes", _BYTES, "float32", (template,), terms, kept.source)
        if key in self._by_bytes:
            entry = self._by_bytes[key]
            merged = _merged(list(self._operations)[self._operation[entry]], operation)
            assert merged is not None
            self._operation[entry] = self._intern(merged)
            return entry
        numbers = [-1] * len(self._tables)
        numbers[self._table_of[template]] = kept.start
        self._by_bytes[key] = self._add(self._intern(operation), form, numbers)
        return self._by_bytes[key]


def _numels(decisions: Decisions) -> list[int]:
    return [math.prod(shape) for _, shape in decisions.specs.forms]


def _counts(decisions: Decisions) -> dict[str, int]:
    """What became of how many tensors. A copy into another dtype is a sum of one, and counts as a
    copy."""
    action = {each.name: each.action for each in decisions.not_averaged}
    taken = {name for name, did in action.items() if did in ("copied", "excluded")}
    counts = dict.fromkeys(("averaged", "integer", "copied", "dropped", "excluded"), 0)
    for name, number in zip(decisions.specs.names, decisions.operation, strict=True):
        op = decisions.operations[number].op
        counts["copied" if name in taken or op == "copy" else _COUNTED[op]] += 1
    for each in decisions.not_averaged:
        counts["dropped"] += each.action == "dropped" or each.reason == "dropped"
        counts["excluded"] += each.action == "excluded"
    return counts


_COUNTED = {"average": "averaged", "integer": "integer"}


def _running_statistics(decisions: Decisions) -> tuple[str, ...]:
    specs = decisions.specs
    shapes = [specs.forms[form][1] for form in specs.form]
    averaged = [
        # A copy into another dtype is a sum of one.
        each.op == "average" and len(each.members) > 1
        for each in decisions.operations
    ]
    return tuple(
        specs.names[place]
        for place in sorted(running_statistics(specs.names, shapes))
        if averaged[decisions.operation[place]]
    )


def _own(number: int, row: Row, made: decide.Operation) -> Operation:
    """The operation of one row alone."""
    positions = tuple(range(len(made.members)))
    term = Term(number, positions, made.weights, made.uniform)
    return Operation(made.op, made.dtype, made.accumulate, made.members, (term,))


def _merged(first: Operation, other: Operation) -> Operation | None:
    """One operation for both, or None where that would change one of them."""
    if (first.op, first.dtype, first.accumulate) != (other.op, other.dtype, other.accumulate):
        return None
    if first.op != "average":
        own, added = first.terms[0], other.terms[0]
        same = (own.weights, own.uniform) == (added.weights, added.uniform)
        if first.members != other.members or not same:
            return None
        return replace(first, terms=(*first.terms, *other.terms))
    members = tuple(sorted({*first.members, *other.members}))
    terms = tuple(
        Term(
            term.row,
            tuple(members.index(operation.members[at]) for at in term.positions),
            term.weights,
            term.uniform,
        )
        for operation in (first, other)
        for term in operation.terms
    )
    return Operation(first.op, first.dtype, first.accumulate, members, terms)
