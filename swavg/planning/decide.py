"""What becomes of each tensor in one row: decided by dtype, shape and policy, not by bytes."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from swavg.dtypes import BY_NAME, Accumulator, DType
from swavg.errors import Difference, MismatchError, RequestError
from swavg.formats.checkpoint import Checkpoint, Form, Shape, TensorTable
from swavg.formats.layout import Specs
from swavg.formats.part_names import in_whole
from swavg.planning.lora import FactorSum
from swavg.planning.match import SideBySide
from swavg.planning.not_plain import SET_APART, set_apart
from swavg.planning.policy import Policy
from swavg.planning.row import Row
from swavg.weights import is_uniform, renormalized

Action = Literal["copied", "dropped", "averaged over some", "excluded"]


@dataclass(frozen=True, slots=True)
class NotAveraged:
    """A tensor that was not simply averaged over all inputs: what was done, and why, in words."""

    name: str
    action: Action
    reason: str


@dataclass(frozen=True, slots=True)
class Operation:
    """How a tensor of the output is made, whichever it is.

    ``average`` is a weighted sum of floats, taken in ``accumulate``; ``integer`` (and floats
    narrower than a byte, and masks) is what all members have, or follows the policy for integers;
    ``copy``
    takes the bytes of its one member. ``members`` are checkpoints,
    ascending, with their ``weights``; ``uniform`` is their mean.
    """

    op: Literal["average", "integer", "copy"]
    dtype: DType
    accumulate: Accumulator
    members: tuple[int, ...]
    weights: tuple[float, ...] = (1.0,)
    uniform: bool = True


@dataclass(frozen=True, eq=False, slots=True)
class Decisions:
    """The tensors of one row's output, in the template's order.

    ``operation[i]`` indexes ``operations``; ``numbers[t][i]`` is the tensor's number in
    ``tables[t]`` (-1: not there). ``unchanged[i]`` is true for the template's own bytes.
    """

    specs: Specs
    operations: tuple[Operation, ...]
    operation: array[int]
    tables: tuple[TensorTable, ...]
    numbers: tuple[array[int], ...]
    unchanged: bytes
    ties: tuple[tuple[str, ...], ...]
    not_averaged: tuple[NotAveraged, ...]


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What holds for all tensors of the same forms: an operation and the output's shape (None:
    left out), or why strict inputs do not match."""

    operation: Operation | None
    shape: Shape
    action: Action | None = None
    reason: str = ""
    what: str = ""
    facts: tuple[str, ...] = ()


def decide(
    checkpoints: Sequence[Checkpoint],
    side_by_side: SideBySide,
    row: Row,
    policy: Policy,
    shown: Sequence[str],
    factor_sums: Mapping[str, FactorSum] | None = None,
    part: str | None = None,
) -> Decisions:
    """Decide for every tensor of a row. ``shown`` are the names of all checkpoints.

    ``side_by_side`` is of the row's members, whose last is the template. ``factor_sums`` say of
    some canonical names that they are made otherwise. ``part`` is the name of one of a composite,
    of which globs may leave nothing to average. Raises MismatchError with every difference,
    RequestError for globs that leave nothing to average.
    """
    selected = selection(side_by_side, policy, part or "")
    decider = _Decider(checkpoints, side_by_side, row, policy, shown, factor_sums or {}, selected)
    return decider.decide(of_several=part is not None)


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


class _Decider:
    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        side_by_side: SideBySide,
        row: Row,
        policy: Policy,
        shown: Sequence[str],
        factor_sums: Mapping[str, FactorSum],
        selected: Callable[[str], bool],
    ) -> None:
        self._factor_sums = factor_sums
        self._match = side_by_side
        self._template = checkpoints[row.members[-1]].tensors
        self._row = row
        self._policy = policy
        self._shown = [shown[member] for member in row.members]
        self._uniform = is_uniform(row.weights)
        self._selected = selected
        self._averages_any = False
        self._verdicts: dict[tuple[object, ...], _Verdict] = {}

    def decide(self, *, of_several: bool) -> Decisions:
        match = self._match
        names = match.names()
        all_names = frozenset(names)
        assert self._factor_sums.keys() <= all_names, "names are matched in another way"
        written: list[str] = []
        forms: dict[tuple[DType, Shape], int] = {}
        operations: dict[Operation, int] = {}
        places: dict[int, tuple[int, int]] = {}
        form, operation = array("I"), array("I")
        numbers = tuple(array("q") for _ in match.tables)
        unchanged = bytearray()
        differences: list[Difference] = []
        others: list[NotAveraged] = []
        for name, column in zip(names, match.columns(names), strict=True):
            selected = self._selected(name)
            apart = set_apart(name, all_names) if name.endswith(SET_APART) else None
            verdict = self._verdict(name, column, selected, apart)
            shown = match.output_name(name)
            if verdict.what:
                facts = tuple(zip(self._shown, verdict.facts, strict=True))
                differences.append(Difference(shown, verdict.what, facts))
                continue
            if verdict.action is not None:
                others.append(NotAveraged(shown, verdict.action, verdict.reason))
            made = verdict.operation
            if made is None:
                continue
            self._averages_any |= selected and len(made.members) == len(self._row.members)
            written.append(shown)
            place = places.get(id(verdict))
            if place is None:
                place = places[id(verdict)] = (
                    forms.setdefault((made.dtype, verdict.shape), len(forms)),
                    operations.setdefault(made, len(operations)),
                )
            form.append(place[0])
            operation.append(place[1])
            for numbers_there, number in zip(numbers, column, strict=True):
                numbers_there.append(number)
            unchanged.append(made.op == "copy" and self._is_own(shown, made, column))
        if differences:
            raise self._behind_prefix() or _mismatch(differences, self._shown)
        kept = of_several and written and not any(map(self._selected, names))
        if not self._averages_any and not kept:
            raise self._nothing(names)
        return Decisions(
            Specs(tuple(written), tuple(forms), form),
            tuple(operations),
            operation,
            match.tables,
            numbers,
            bytes(unchanged),
            self._written_ties(set(written)),
            tuple(others),
        )

    def _is_own(self, name: str, made: Operation, column: Sequence[int]) -> bool:
        """Whether a copy is the template's own tensor of this name."""
        if made.members[0] != self._row.members[-1]:
            return False
        own, columns = self._template.index.get(name, -1), self._template.columns
        taken = column[self._match.table_of[-1]]
        return own == taken or (
            own >= 0
            and columns.offset[own] == columns.offset[taken]
            and columns.form[own] == columns.form[taken]
        )

    def _verdict(
        self,
        name: str,
        column: Sequence[int],
        selected: bool,
        apart: Literal["spectral", "mask"] | None,
    ) -> _Verdict:
        columns = [table.columns for table in self._match.tables]
        factor_sum = self._factor_sums.get(name)
        key = (
            selected,
            apart,
            factor_sum,
            *(
                number if number < 0 or number in of.others else (of.form[number],)
                for of, number in zip(columns, column, strict=True)
            ),
        )
        if key not in self._verdicts:
            places = [
                None if number < 0 else self._match.form(place, number)
                for place, number in enumerate(column)
            ]
            forms = [places[place] for place in self._match.table_of]
            if factor_sum is None:
                self._verdicts[key] = self._judged(forms, selected, apart)
            elif selected:
                self._verdicts[key] = self._factor_sum(factor_sum, forms)
            else:
                raise RequestError(
                    f"include= and exclude= leave out '{name}': lora=exact takes whole adapters."
                )
        return self._verdicts[key]

    def _judged(
        self,
        forms: Sequence[Form | None],
        selected: bool,
        apart: Literal["spectral", "mask"] | None,
    ) -> _Verdict:
        """What becomes of a tensor that has these forms (None: it is missing), one per member."""
        last = max(index for index, form in enumerate(forms) if form is not None)
        reference = forms[last]
        assert reference is not None
        if not selected:
            if self._policy.drop_excluded:
                return _Verdict(None, (), "excluded", "dropped")
            made = self._copy(last, reference[0])
            reason = f"copied from {self._shown[last]}{_as(made)}"
            return _Verdict(made, reference[1], "excluded", reason)
        if self._row.copies:
            return _Verdict(self._copy(0, reference[0]), reference[1])
        mask = apart == "mask"
        if self._policy.strict and (differs := self._differs(forms, mask=mask)) is not None:
            return differs
        if apart == "spectral":
            made = self._copy(last, reference[0])
            reason = f"from {self._shown[last]}{_as(made)}: a vector of spectral norm"
            return _Verdict(made, reference[1], "copied", reason)
        alike = [
            index
            for index, form in enumerate(forms)
            if _compatible(form, reference, same_dtype=mask)
        ]
        if len(alike) == len(forms) and mask:
            made = Operation(
                "integer", reference[0], "float32", self._row.members, self._row.weights
            )
            return _Verdict(made, reference[1])
        if len(alike) == len(forms):
            return _Verdict(self._average(forms, alike, self._row.weights), reference[1])
        reason = "; ".join(
            f"{'missing' if form is None else f'{form[0]} {list(form[1])}'} in {self._shown[index]}"
            for index, form in enumerate(forms)
            if index not in alike
        )
        if self._policy.missing == "drop":
            return _Verdict(None, (), "dropped", reason)
        if self._policy.missing == "keep" or len(alike) == 1:
            made = self._copy(last, reference[0])
            reason = f"from {self._shown[last]}{_as(made)}: {reason}"
            return _Verdict(made, reference[1], "copied", reason)
        weights = renormalized(self._row.weights, alike)
        made = self._average(forms, alike, weights)
        return _Verdict(made, reference[1], "averaged over some", reason)

    def _factor_sum(self, factor_sum: FactorSum, forms: Sequence[Form | None]) -> _Verdict:
        present = [form for form in forms if form is not None]
        shape = present[-1][1]
        if len(present) < len(forms) or any(form[1] != shape for form in present):
            differs = self._differs(forms)
            assert differs is not None
            return differs
        members, weights = self._row.members, factor_sum.weights
        output = self._output_dtype(factor_sum.dtype)
        if weights is None:
            members, weights, output = members[-1:], (1.0,), factor_sum.dtype
        accumulate = self._accumulate([form[0] for form in present])
        made = Operation("average", output, accumulate, members, weights, uniform=False)
        return _Verdict(made, shape)

    def _differs(self, forms: Sequence[Form | None], *, mask: bool = False) -> _Verdict | None:
        """Why strict inputs do not match, or None."""
        present = [form for form in forms if form is not None]
        if len(present) < len(forms):
            facts = tuple("missing" if form is None else "present" for form in forms)
            return _Verdict(None, (), what="missing", facts=facts)
        if len({shape for _, shape, _ in present}) > 1:
            facts = tuple(str(list(shape)) for _, shape, _ in present)
            return _Verdict(None, (), what="shape", facts=facts)
        mixed = self._policy.mixed_dtypes
        if mixed and all(_compatible(form, present[-1], same_dtype=mask) for form in present):
            return None
        if len({dtype.name for dtype, _, _ in present}) > 1:
            facts = tuple(dtype.name for dtype, _, _ in present)
            return _Verdict(None, (), what="dtype", facts=facts)
        return None

    def _average(
        self, forms: Sequence[Form | None], alike: Sequence[int], weights: Sequence[float]
    ) -> Operation:
        dtypes = [form[0] for form in map(forms.__getitem__, alike) if form is not None]
        output = self._output_dtype(dtypes[0])
        members = tuple(self._row.members[index] for index in alike)
        whole = len(alike) == len(forms)
        uniform = self._uniform if whole else is_uniform(weights)
        summed = dtypes[0].floating and dtypes[0].bits >= 8
        op: Literal["average", "integer"] = "average" if summed else "integer"
        return Operation(op, output, self._accumulate(dtypes), members, tuple(weights), uniform)

    def _copy(self, index: int, dtype: DType) -> Operation:
        output = self._output_dtype(dtype)
        # A copy into another dtype is a sum of one.
        op: Literal["copy", "average"] = "copy" if output is dtype else "average"
        return Operation(op, output, self._accumulate([dtype]), (self._row.members[index],))

    def _output_dtype(self, dtype: DType) -> DType:
        wanted = self._policy.dtype
        # Narrower ones are codes, whose scales are other tensors.
        converted = wanted != "keep" and dtype.kind == "float" and dtype.bits >= 8
        return BY_NAME[wanted] if converted else dtype

    def _accumulate(self, dtypes: Sequence[DType]) -> Accumulator:
        """The widest dtype that the inputs ask for, unless it is fixed."""
        if self._policy.accumulate != "auto":
            return self._policy.accumulate
        return "float64" if any(d.accumulator == "float64" for d in dtypes) else "float32"

    def _written_ties(self, names: set[str]) -> tuple[tuple[str, ...], ...]:
        """The ties between names that are written, under those names."""
        groups = (tuple(map(self._match.output_name, group)) for group in self._match.ties)
        kept = (tuple(name for name in group if name in names) for group in groups)
        return tuple(group for group in kept if len(group) > 1)

    def _behind_prefix(self) -> MismatchError | None:
        """The error if it is a prefix that keeps names apart."""
        found = self._match.prefixes(self._shown)
        return None if found is None else MismatchError(f"{found.fact}.", hint=found.hint)

    def _nothing(self, names: Sequence[str]) -> RequestError | MismatchError:
        """The error of a row in which nothing is averaged."""
        policy = self._policy
        if (policy.include or policy.exclude) and not any(map(self._selected, names)):
            return RequestError(
                f"include= and exclude= leave none of {len(names)} tensors to average.",
                hint=f"Names look like '{names[0]}'." if names else None,
            )
        if not names:
            return MismatchError("The checkpoints hold no tensors.")
        return self._behind_prefix() or MismatchError(
            "The checkpoints have no tensor in common: no name has the same shape and kind of"
            " dtype in all.",
            hint="Are they of the same model? For a .pt file, key= chooses the state dict.",
        )


def _compatible(form: Form | None, reference: Form, *, same_dtype: bool) -> bool:
    """True if a lenient average may join the two: same shape, both floats or the same integers."""
    if form is None or form[1] != reference[1]:
        return False
    one, other = form[0], reference[0]
    return one is other or (not same_dtype and _may_mix(one, other))


def _may_mix(one: DType, other: DType) -> bool:
    """Whether elements of two dtypes can be summed; floats below 8 bits are codes."""
    return one.kind == other.kind and one.floating and min(one.bits, other.bits) >= 8


def _as(made: Operation) -> str:
    """What a copy is converted to, in words."""
    return "" if made.op == "copy" else f", as {made.dtype}"


def _mismatch(differences: Sequence[Difference], inputs: Sequence[str]) -> MismatchError:
    first = differences[0]
    *others, (source, fact) = first.facts
    other_source, other_fact = next(
        ((s, f) for s, f in others if f != fact), (inputs[0], first.facts[0][1])
    )
    message = (
        f"{source}: '{first.name}' is {fact}; {other_source} has "
        f"{'it' if other_fact == 'present' else other_fact}."
        if fact != "present"
        else f"{other_source}: '{first.name}' is {other_fact}; {source} has it."
    )
    if len(differences) > 1:
        message += f" {len(differences)} tensors differ."
    if all(map(_only_floats_differ, differences)):
        hint = "Average them with mixed_dtypes=True."
    elif len(differences) > 1:
        hint = "Use strict=False, or leave what differs out with exclude=."
    else:
        glob = first.name
        hint = f"Leave it out with exclude='{glob}' or use strict=False."
    return MismatchError(message, differences=differences, hint=hint)


def _only_floats_differ(difference: Difference) -> bool:
    dtypes = [BY_NAME[fact] for _, fact in difference.facts] if difference.what == "dtype" else []
    return bool(dtypes) and all(_may_mix(dtype, dtypes[0]) for dtype in dtypes)
