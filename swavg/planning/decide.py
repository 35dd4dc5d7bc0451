"""What becomes of each tensor in one row: decided by dtype, shape and policy, not by bytes."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from swavg.dtypes import BY_NAME, Accumulator, DType
from swavg.errors import Difference, MismatchError, RequestError
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.layout import Specs
from swavg.formats.tensors import Form, Shape, TensorTable
from swavg.planning.globs import selection
from swavg.planning.lora import FactorSum
from swavg.planning.match import SideBySide
from swavg.planning.mismatch import NOT_OF_ONE_MODEL, may_mix, mismatch
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
    decider = _Decider(
        side_by_side,
        checkpoints[row.members[-1]].tensors,
        row,
        policy,
        [shown[member] for member in row.members],
        factor_sums or {},
        selection(side_by_side, policy, part or ""),
    )
    return decider.decide(of_several=part is not None)


@dataclass(frozen=True, eq=False, slots=True)
class _Decider:
    """Decides for one row, whose members are ``shown`` so."""

    match: SideBySide
    template: TensorTable
    row: Row
    policy: Policy
    shown: Sequence[str]
    factor_sums: Mapping[str, FactorSum]
    selected: Callable[[str], bool]
    verdicts: dict[tuple[object, ...], _Verdict] = field(default_factory=dict)

    def decide(self, *, of_several: bool) -> Decisions:
        match = self.match
        names = match.names()
        all_names = frozenset(names)
        assert self.factor_sums.keys() <= all_names, "names are matched in another way"
        written: list[str] = []
        forms: dict[tuple[DType, Shape], int] = {}
        operations: dict[Operation, int] = {}
        places: dict[int, tuple[int, int]] = {}
        form, operation = array("I"), array("I")
        numbers = tuple(array("q") for _ in match.tables)
        unchanged = bytearray()
        differences: list[Difference] = []
        others: list[NotAveraged] = []
        averages_any = False
        for name, column in zip(names, match.columns(names), strict=True):
            selected = self.selected(name)
            apart = set_apart(name, all_names) if name.endswith(SET_APART) else None
            verdict = self._verdict(name, column, selected, apart)
            shown = match.output_name(name)
            if verdict.what:
                facts = tuple(zip(self.shown, verdict.facts, strict=True))
                differences.append(Difference(shown, verdict.what, facts))
                continue
            if verdict.action is not None:
                others.append(NotAveraged(shown, verdict.action, verdict.reason))
            made = verdict.operation
            if made is None:
                continue
            averages_any |= selected and len(made.members) == len(self.row.members)
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
            raise self._behind_prefix() or mismatch(differences, self.shown, related=averages_any)
        kept = of_several and written and not any(map(self.selected, names))
        if not averages_any and not kept:
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
        if made.members[0] != self.row.members[-1]:
            return False
        own, columns = self.template.index.get(name, -1), self.template.columns
        taken = column[self.match.table_of[-1]]
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
        columns = [table.columns for table in self.match.tables]
        factor_sum = self.factor_sums.get(name)
        key = (
            selected,
            apart,
            factor_sum,
            *(
                number if number < 0 or number in of.others else (of.form[number],)
                for of, number in zip(columns, column, strict=True)
            ),
        )
        if key not in self.verdicts:
            places = [
                None if number < 0 else self.match.form(place, number)
                for place, number in enumerate(column)
            ]
            forms = [places[place] for place in self.match.table_of]
            if factor_sum is None:
                self.verdicts[key] = self._judged(forms, selected, apart)
            elif selected:
                self.verdicts[key] = self._factor_sum(factor_sum, forms)
            else:
                raise RequestError(
                    f"include= and exclude= leave out '{name}': lora=exact takes whole adapters."
                )
        return self.verdicts[key]

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
            if self.policy.drop_excluded:
                return _Verdict(None, (), "excluded", "dropped")
            return self._taken(last, reference, "excluded", "copied ", "")
        if self.row.copies:
            return _Verdict(self._copy(0, reference[0]), reference[1])
        mask = apart == "mask"
        if self.policy.strict and (differs := self._differs(forms, mask=mask)) is not None:
            return differs
        if apart == "spectral":
            return self._taken(last, reference, "copied", "", ": a vector of spectral norm")
        alike = [
            index
            for index, form in enumerate(forms)
            if _compatible(form, reference, same_dtype=mask)
        ]
        if len(alike) == len(forms) and mask:
            made = Operation("integer", reference[0], "float32", self.row.members, self.row.weights)
            return _Verdict(made, reference[1])
        if len(alike) == len(forms):
            return _Verdict(self._average(forms, alike, self.row.weights), reference[1])
        reason = "; ".join(
            f"{'missing' if form is None else f'{form[0]} {list(form[1])}'} in {self.shown[index]}"
            for index, form in enumerate(forms)
            if index not in alike
        )
        if self.policy.missing == "drop":
            return _Verdict(None, (), "dropped", reason)
        if self.policy.missing == "keep" or len(alike) == 1:
            return self._taken(last, reference, "copied", "", f": {reason}")
        weights = renormalized(self.row.weights, alike)
        made = self._average(forms, alike, weights)
        return _Verdict(made, reference[1], "averaged over some", reason)

    def _taken(self, index: int, form: Form, action: Action, before: str, behind: str) -> _Verdict:
        """A member's own tensor instead of an average, and the words around where it is from."""
        made = self._copy(index, form[0])
        converted = "" if made.op == "copy" else f", as {made.dtype}"
        reason = f"{before}from {self.shown[index]}{converted}{behind}"
        return _Verdict(made, form[1], action, reason)

    def _factor_sum(self, factor_sum: FactorSum, forms: Sequence[Form | None]) -> _Verdict:
        present = [form for form in forms if form is not None]
        shape = present[-1][1]
        if len(present) < len(forms) or any(form[1] != shape for form in present):
            differs = self._differs(forms)
            assert differs is not None
            return differs
        members, weights = self.row.members, factor_sum.weights
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
        mixed = self.policy.mixed_dtypes
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
        members = tuple(self.row.members[index] for index in alike)
        summed = dtypes[0].floating and dtypes[0].bits >= 8
        op: Literal["average", "integer"] = "average" if summed else "integer"
        return Operation(
            op, output, self._accumulate(dtypes), members, tuple(weights), is_uniform(weights)
        )

    def _copy(self, index: int, dtype: DType) -> Operation:
        output = self._output_dtype(dtype)
        # A copy into another dtype is a sum of one.
        op: Literal["copy", "average"] = "copy" if output is dtype else "average"
        return Operation(op, output, self._accumulate([dtype]), (self.row.members[index],))

    def _output_dtype(self, dtype: DType) -> DType:
        wanted = self.policy.dtype
        # Narrower ones are codes, whose scales are other tensors.
        converted = wanted != "keep" and dtype.kind == "float" and dtype.bits >= 8
        return BY_NAME[wanted] if converted else dtype

    def _accumulate(self, dtypes: Sequence[DType]) -> Accumulator:
        """The widest dtype that the inputs ask for, unless it is fixed."""
        if self.policy.accumulate != "auto":
            return self.policy.accumulate
        return "float64" if any(d.accumulator == "float64" for d in dtypes) else "float32"

    def _written_ties(self, names: set[str]) -> tuple[tuple[str, ...], ...]:
        """The ties between names that are written, under those names."""
        groups = (tuple(map(self.match.output_name, group)) for group in self.match.ties)
        kept = (tuple(name for name in group if name in names) for group in groups)
        return tuple(group for group in kept if len(group) > 1)

    def _behind_prefix(self) -> MismatchError | None:
        """The error if it is a prefix that keeps names apart."""
        found = self.match.prefixes(self.shown)
        return None if found is None else MismatchError(f"{found.fact}.", hint=found.hint)

    def _nothing(self, names: Sequence[str]) -> RequestError | MismatchError:
        """The error of a row in which nothing is averaged."""
        policy = self.policy
        if (policy.include or policy.exclude) and not any(map(self.selected, names)):
            return RequestError(
                f"include= and exclude= leave none of {len(names)} tensors to average.",
                hint=f"Names look like '{names[0]}'." if names else None,
            )
        if not names:
            return MismatchError("The checkpoints hold no tensors.")
        return self._behind_prefix() or MismatchError(
            "The checkpoints have no tensor in common: no name has the same shape and kind of"
            " dtype in all.",
            hint=NOT_OF_ONE_MODEL,
        )


def _compatible(form: Form | None, reference: Form, *, same_dtype: bool) -> bool:
    """True if a lenient average may join the two: same shape, both floats or the same integers."""
    if form is None or form[1] != reference[1]:
        return False
    one, other = form[0], reference[0]
    return one is other or (not same_dtype and may_mix(one, other))
