"""Sums of checkpoints put into a model: a plan whose one output is the memory of its tensors."""

from __future__ import annotations

import os
import warnings
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from swavg.dtypes import Accumulator
from swavg.engine.compute import Tools, run_task
from swavg.engine.recipe import short_names
from swavg.engine.resources import Resources, sizes
from swavg.errors import MismatchError, NumericsError, RequestError
from swavg.formats import open_checkpoint
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.layout import FileLayout, Specs, distinct
from swavg.formats.tensors import Shared
from swavg.planning.confirm import check_plain
from swavg.planning.entries import Entries, Operation, Term
from swavg.planning.match import canonical, distinct_tables
from swavg.planning.not_plain import SET_APART, set_apart
from swavg.planning.plan import File, Output, Plan
from swavg.planning.policy import Policy
from swavg.planning.rename import rules
from swavg.planning.row import Row
from swavg.planning.targets import Target
from swavg.training.known_as import known_as
from swavg.training.matching import Match, match_model, model_dtype
from swavg.training.places import own_tensors
from swavg.training.tensor_sink import TensorSink, memory_of, writable
from swavg.training.wrapped import check_module
from swavg.weights import is_uniform

Path = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A plan for a model as it is now: ``kinds`` are the facts that it depends on, ``names`` the
    model's tensors in the order of the output, which has them in ``dtypes``."""

    kinds: Sequence[object]
    plan: Plan
    tools: Tools
    names: Sequence[str]
    dtypes: Sequence[torch.dtype]


class ModelPlan:
    """Checkpoints that are opened and matched with a model once, to put many weighted sums of
    them into it.

    ``kept`` are the names of the model's tensors that keep their own value (only if not strict).
    The arguments and the errors are those of :func:`swavg.training.apply.apply_swa`. A context
    manager that closes the files.
    """

    def __init__(
        self,
        model: nn.Module,
        checkpoints: Sequence[Path | Checkpoint],
        *,
        strict: bool = True,
        key: str | None = None,
        strip_prefix: str | Sequence[str] = (),
        allow_nonfinite: bool = False,
    ) -> None:
        if isinstance(checkpoints, (str, os.PathLike)):
            raise RequestError("The checkpoints are one path.", hint="Give a list of paths.")
        if not checkpoints:
            raise RequestError("No checkpoints given.")
        check_module(model)
        shared = Shared()
        opened = [
            each if isinstance(each, Checkpoint) else open_checkpoint(each, key=key, shared=shared)
            for each in checkpoints
        ]
        tensors = own_tensors(model)
        must = not any(isinstance(each, Checkpoint) for each in checkpoints)
        names, opened = known_as(model, opened, rules(strip_prefix), must=must)
        self._checkpoints = tuple(opened)
        self._shown = short_names([each.path for each in self._checkpoints])
        self._tables, self._table_of = distinct_tables(self._checkpoints)
        self._model = model
        self._policy = Policy(allow_nonfinite=allow_nonfinite)
        self._matches, self.kept = match_model(
            tensors, self._tables, self._table_of, self._shown, strict=strict, known_as=names
        )
        self._prepared: _Prepared | None = None
        made = {canonical(names[match.name]) for match in self._matches}
        for text in check_plain(self._checkpoints, self._shown, made.__contains__):
            warnings.warn(text, stacklevel=3)

    def __enter__(self) -> ModelPlan:
        return self

    def __exit__(self, *_: object) -> None:
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            prepared.tools.__exit__()

    def apply(self, weights: Sequence[float]) -> None:
        """Put the sum with these weights, one for each checkpoint, into the model.

        Raises InputError for a file that changed since it was opened, NumericsError as
        :func:`swavg.training.apply.apply_swa`, MismatchError for a model that was changed.
        """
        # Asked for anew: a model that was moved has other buffers, FSDP2 puts its shards back.
        tensors = own_tensors(self._model)
        prepared = self._prepare(tensors)
        plan = _with_weights(prepared.plan, tuple(weights))
        memory = [memory_of(tensors[name])[1] for name in prepared.names]
        prepared.tools.go_on_with(plan)
        with writable(memory):
            sink = TensorSink(memory, prepared.dtypes, plan.outputs[0].files[0].offsets)
            try:
                for number in plan.tasks():
                    run_task(plan, number, prepared.tools, [[sink]])
            except NumericsError as error:
                raise NumericsError(
                    error.message,
                    hint="Leave that checkpoint out, or set allow_nonfinite=True to let it"
                    " through. The model holds the average in part now.",
                ) from None
        for checkpoint in self._checkpoints:
            for source in checkpoint.sources:
                source.check()

    def _prepare(self, tensors: Mapping[str, Tensor]) -> _Prepared:
        """The plan for the model as it is. MismatchError if it does not fit any more."""
        own = [tensors.get(match.name) for match in self._matches]
        kinds = [None if tensor is None else _kind(tensor) for tensor in own]
        if self._prepared is None or kinds != self._prepared.kinds:
            for match, tensor in zip(self._matches, own, strict=True):
                shape = self._tables[0].form_of(match.numbers[0])[1]
                if tensor is None or tuple(tensor.shape) != shape:
                    raise MismatchError(f"'{match.name}' of the model is no longer what it was.")
            plan, names = self._plan(tensors)
            specs = plan.outputs[0].files[0].layout.specs
            dtypes = [getattr(torch, specs.forms[form][0].name) for form in specs.form]
            chosen = sizes(plan, Resources(threads=1), forked=False)
            # Many a model is smaller than a block; of any dtype, eight elements are whole bytes.
            numel = -(-sum(tensors[name].numel() for name in names) // 8) * 8
            chosen = replace(chosen, elements=min(chosen.elements, max(8, numel)))
            self.__exit__()
            self._prepared = _Prepared(kinds, plan, Tools(plan, chosen), names, dtypes)
        return self._prepared

    def _plan(self, tensors: Mapping[str, Tensor]) -> tuple[Plan, Sequence[str]]:
        """The tensors end to end in one file and one task, and their names in its order."""
        ordered = self._ordered(tensors)
        operations, operation = distinct(made for _, made in ordered)
        forms, form = distinct(
            (made.dtype, tuple(tensors[match.name].shape)) for match, made in ordered
        )
        offsets, size = array("q"), 0
        parts: dict[int, tuple[int, int]] = {}
        for number, (match, made) in enumerate(ordered):
            tensor = tensors[match.name]
            first, memory = memory_of(tensor)
            if memory.numel() < tensor.numel():
                parts[number] = first, first + memory.numel()
            offsets.append(size)
            size += made.dtype.nbytes(memory.numel())
        names = tuple(match.name for match, _ in ordered)
        entries = Entries(
            operations,
            operation,
            tuple((shape, None) for _, shape in forms),
            form,
            self._tables,
            self._table_of,
            tuple(
                array("q", [match.numbers[place] for match, _ in ordered])
                for place in range(len(self._tables))
            ),
        )
        order = array("q", range(len(ordered)))
        in_file = array("I", order)
        specs = Specs(names, forms, form)
        layout = FileLayout("", size, specs, in_file, offsets)
        file = File(layout, offsets, in_file, order, parts)
        output = Output(Target(None, ""), (file,), {}, {}, order, (0,), (), (), (), {}, size, ())
        plan = Plan(
            self._checkpoints, self._shown, (), self._policy, entries, (output,), ({},), (),
            cut=max(1, size),
        )  # fmt: skip
        return plan, names

    def _ordered(self, tensors: Mapping[str, Tensor]) -> list[tuple[Match, Operation]]:
        """What is made of which tensors, and how: what is made alike together, on one device, in
        the order in which the last checkpoint has it. Nothing is made of no elements."""
        last = self._table_of[-1]
        columns = self._tables[last].columns
        found = [
            (match, self._operation(match, tensors))
            for match in self._matches
            if memory_of(tensors[match.name])[1].numel()
        ]
        operations, _ = distinct(operation for _, operation in found)

        def place(pair: tuple[Match, Operation]) -> tuple[int, str, int, int]:
            match, operation = pair
            number = match.numbers[last]
            source = columns.source[number]
            device = str(tensors[match.name].device)
            return operations.index(operation), device, source, columns.offset[number]

        return sorted(found, key=place)

    def _operation(self, match: Match, tensors: Mapping[str, Tensor]) -> Operation:
        """How a tensor is made; a sum has no terms yet. Integers and vectors of spectral norm are
        the last checkpoint's."""
        tensor = tensors[match.name]
        dtype, last = model_dtype(tensor), len(self._checkpoints) - 1
        if dtype is None:
            raise MismatchError(f"'{match.name}' of the model is {tensor.dtype} now.")
        inputs = [
            table.form_of(number)[0]
            for table, number in zip(self._tables, match.numbers, strict=True)
        ]
        term = Term(0, (0,), (1.0,), uniform=True)
        if not dtype.floating:
            return Operation("copy", inputs[self._table_of[last]], "float32", (last,), (term,))
        wide = any(dtype.accumulator == "float64" for dtype in inputs)
        accumulate: Accumulator = "float64" if wide else "float32"
        if match.name.endswith(SET_APART) and set_apart(match.name, tensors) == "spectral":
            return Operation("average", dtype, accumulate, (last,), (term,))
        return Operation("average", dtype, accumulate, tuple(range(last + 1)), ())


def _with_weights(plan: Plan, weights: tuple[float, ...]) -> Plan:
    members = tuple(range(len(weights)))
    term = Term(0, members, weights, is_uniform(weights))
    operations = tuple(
        replace(operation, terms=(term,)) if not operation.terms else operation
        for operation in plan.entries.operations
    )
    entries = replace(plan.entries, operations=operations)
    return replace(plan, rows=(Row(weights, members),), entries=entries)


def _kind(tensor: Tensor) -> object:
    first, memory = memory_of(tensor)
    return tensor.shape, tensor.dtype, tensor.device, first, memory.numel()
