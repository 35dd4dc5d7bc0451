"""Deciding, before anything is read or written, what happens to each tensor.

Pure functions from opened checkpoints to an immutable, picklable :class:`Plan`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from swavg.dtypes import BY_NAME, Accumulator, DType
from swavg.errors import Difference, MismatchError, RequestError
from swavg.formats.base import Checkpoint, Task, Tensor
from swavg.weights import is_uniform, renormalized

Missing = Literal["keep", "drop", "average"]
Integers = Literal["last", "first", "max", "mean", "error"]


@dataclass(frozen=True, slots=True)
class Policy:
    """What to do with tensors, all in one value.

    ``strict``: all inputs must have the same names, shapes and dtypes. Otherwise ``missing`` says
    what happens to a tensor that some lack (or have in another shape): ``keep`` the last
    checkpoint's, ``drop`` it, or ``average`` those that have it, with weights renormalized.
    ``include`` and ``exclude`` are globs over names: what is averaged; the rest is copied from the
    last checkpoint, or dropped with ``drop_excluded``. ``dtype`` of the floats in the output
    (``keep``: as in the first input); ``accumulate`` the dtype of sums (``auto``: float32 for
    floats of 8 and 16 bits, else float64). ``integers`` decides for integer and bool tensors that
    differ. ``drop_ties`` writes a tied tensor once where a format cannot express ties.
    ``allow_nonfinite`` lets NaN and Inf through. ``weights_only`` writes a bare state dict.
    ``mixed_dtypes`` lets floats of different dtypes match even when strict (a float32 average and
    the bfloat16 checkpoint that is added to it). ``max_shard_size`` in bytes makes the output a
    folder of shards. ``pool_batch_norm`` makes running variances those of a mixture of the inputs
    (see :mod:`swavg.kernels.pooling`). ``key`` is the dotted path of
    the state dict in PyTorch files.
    """

    strict: bool = True
    missing: Missing = "keep"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    drop_excluded: bool = False
    key: str | None = None
    dtype: str = "keep"
    accumulate: Literal["auto", "float32", "float64"] = "auto"
    integers: Integers = "last"
    drop_ties: bool = False
    allow_nonfinite: bool = False
    weights_only: bool = False
    max_shard_size: int | None = None
    mixed_dtypes: bool = False
    pool_batch_norm: bool = False

    def __post_init__(self) -> None:
        choices = {
            "missing": ("keep", "drop", "average"),
            "accumulate": ("auto", "float32", "float64"),
            "integers": ("last", "first", "max", "mean", "error"),
            "dtype": ("keep", "float32", "float64", "float16", "bfloat16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise RequestError(
                    f"{name} is {getattr(self, name)!r}; it can be {', '.join(allowed)}."
                )
        if self.max_shard_size is not None and self.max_shard_size < 1:
            raise RequestError("max_shard_size is a number of bytes, at least 1.")


@dataclass(frozen=True, slots=True)
class Treated:
    """A tensor that was not simply averaged over all inputs: ``how`` and ``why``, in words."""

    name: str
    how: Literal["copied", "dropped", "averaged over some", "excluded", "pooled"]
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides the values of the output; where they lie is the layout's.

    ``inputs`` are names to show; ``tasks`` one per distinct output tensor, in the template's
    order; ``ties`` groups of names of which the first has a task. ``treated`` lists what was not
    averaged over all inputs.
    """

    inputs: tuple[str, ...]
    weights: tuple[float, ...]
    policy: Policy
    tasks: tuple[Task, ...]
    ties: tuple[tuple[str, ...], ...]
    treated: tuple[Treated, ...]
    notes: tuple[str, ...]

    @property
    def averaged(self) -> tuple[Task, ...]:
        return tuple(task for task in self.tasks if is_average(task))


def is_average(task: Task) -> bool:
    """True for a weighted sum of floats over two or more inputs (or all of one)."""
    return task.kind == "average"


def accumulator(task: Task, policy: Policy) -> Accumulator:
    """The dtype in which a task sums: the widest that its inputs ask for, unless fixed."""
    if policy.accumulate != "auto":
        return policy.accumulate
    wide = any(source.spec.dtype.accumulator == "float64" for source in task.sources)
    return "float64" if wide else "float32"


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


def make_plan(
    checkpoints: Sequence[Checkpoint],
    weights: Sequence[float],
    policy: Policy,
    *,
    inputs: Sequence[str],
    ties: Sequence[tuple[str, ...]] = (),
) -> Plan:
    """Match the tensors of ``checkpoints`` and decide for each.

    ``inputs`` are the names to show for the checkpoints; ``ties`` groups of canonical names that
    are one tensor in every checkpoint that has them. The template, which gives names and order, is
    the last checkpoint. Raises MismatchError with every difference, RequestError for globs that
    leave nothing to average.
    """
    matcher = _Matcher(checkpoints, weights, policy, inputs, ties)
    names = matcher.names()
    differences: list[Difference] = []
    tasks: list[Task] = []
    treated: list[Treated] = []
    for name in names:
        found = matcher.present(name)
        if policy.strict and matcher.selected(name):
            difference = matcher.difference(name, found)
            if difference is not None:
                differences.append(difference)
                continue
        if differences:
            continue
        task, treatment = matcher.decide(name, found)
        if task is not None:
            tasks.append(task)
        if treatment is not None:
            treated.append(treatment)
    if differences:
        raise _mismatch(differences, inputs)
    if not any(task.kind != "copy" and matcher.selected_task(task) for task in tasks):
        matcher.complain_about_nothing(names)
    if policy.pool_batch_norm:
        tasks, pooled, notes = _pooled(tasks)
        treated += pooled
        matcher.notes += notes
    return Plan(
        tuple(inputs),
        tuple(weights),
        policy,
        tuple(tasks),
        matcher.written_ties(tasks),
        tuple(treated),
        tuple(matcher.notes),
    )


def _pooled(tasks: Sequence[Task]) -> tuple[list[Task], list[Treated], list[str]]:
    """The tasks with running variances pooled, and what to report of that."""
    from swavg.pooling import mean_of, pool_statistics

    found, not_pooled = pool_statistics(tasks)
    treated = [
        Treated(task.name, "pooled", f"variance of the mixture, with {mean_of(task.name)}")
        for task in found
        if task.kind == "pooled"
    ]
    notes = [
        f"not pooled: {name}, as {mean_of(name)} is not averaged with it" for name in not_pooled
    ]
    if not treated:
        notes.append("there are no batch-norm statistics to pool (running_mean and running_var)")
    return found, treated, notes


def _mismatch(differences: Sequence[Difference], inputs: Sequence[str]) -> MismatchError:
    first = differences[0]
    *others, (source, fact) = first.facts
    other_source, other_fact = next(
        ((s, f) for s, f in others if f != fact), (inputs[0], first.facts[0][1])
    )
    subject = {"missing": "", "shape": "is ", "dtype": "is "}[first.what]
    message = (
        f"{source}: '{first.name}' {subject}{fact}; {other_source} has "
        f"{'it' if other_fact == 'present' else other_fact}."
        if fact != "present"
        else f"{other_source}: '{first.name}' {subject}{other_fact}; {source} has it."
    )
    if len(differences) > 1:
        message += f" In all {len(differences)} tensors differ."
    glob = f"{first.name.split('.')[0]}.*" if "." in first.name else first.name
    return MismatchError(
        message,
        differences=differences,
        hint=f"Leave it out with --exclude '{glob}' or use --lenient.",
    )


class _Matcher:
    """The checkpoints side by side, by canonical name."""

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        weights: Sequence[float],
        policy: Policy,
        inputs: Sequence[str],
        ties: Sequence[tuple[str, ...]],
    ) -> None:
        self._checkpoints = checkpoints
        self._weights = tuple(weights)
        self._all = tuple(range(len(checkpoints)))
        self._uniform = is_uniform(weights)
        self._policy = policy
        self._inputs = inputs
        self.notes: list[str] = []
        # Checkpoints of one run share their mapping of names: match it once.
        shared: dict[int, dict[str, str]] = {}
        for checkpoint in checkpoints:
            if id(checkpoint.tensors) not in shared:
                shared[id(checkpoint.tensors)] = by_canonical_name(list(checkpoint.tensors))
        self._names = [shared[id(checkpoint.tensors)] for checkpoint in checkpoints]
        self._ties = {name: group for group in ties for name in group}
        self._groups = tuple(ties)
        self._selected: dict[str, bool] = {}

    def names(self) -> list[str]:
        """All canonical names: the template's in its order, then those of earlier checkpoints."""
        found: dict[str, None] = {}
        seen: set[int] = set()
        for names in reversed(self._names):
            if id(names) not in seen:
                seen.add(id(names))
                found.update(dict.fromkeys(names))
        # A tied partner of a tensor that is there needs no place of its own.
        return list(found)

    def present(self, name: str) -> tuple[Tensor | None, ...]:
        """The tensor ``name`` in each checkpoint, through a tied partner if need be."""
        return tuple(map(self._find, self._checkpoints, self._names, [name] * len(self._all)))

    def _find(self, checkpoint: Checkpoint, names: Mapping[str, str], name: str) -> Tensor | None:
        actual = names.get(name)
        if actual is None:
            for partner in self._ties.get(name, ()):
                if partner in names:
                    return checkpoint.tensors[names[partner]]
            return None
        return checkpoint.tensors[actual]

    def output_name(self, name: str) -> str:
        """The name in the template, or in the last checkpoint that has it."""
        for names in reversed(self._names):
            if name in names:
                return names[name]
        return name

    def selected(self, name: str) -> bool:
        """True if --include and --exclude leave ``name`` (or a name tied to it) to be averaged."""
        if name not in self._selected:
            group = self._ties.get(name, (name,))
            chosen = any(self._matches(member) for member in group)
            self._selected.update(dict.fromkeys(group, chosen))
        return self._selected[name]

    def selected_task(self, task: Task) -> bool:
        return self.selected(canonical(task.name)) or self.selected(task.name)

    def _matches(self, name: str) -> bool:
        candidates = {name, self.output_name(name)}
        include, exclude = self._policy.include, self._policy.exclude

        def any_glob(globs: Sequence[str]) -> bool:
            return any(fnmatchcase(text, glob) for text in candidates for glob in globs)

        return (not include or any_glob(include)) and not any_glob(exclude)

    def difference(self, name: str, found: Sequence[Tensor | None]) -> Difference | None:
        """What differs between the inputs about ``name``, or None."""
        first = found[0]
        if first is not None and all(other is first for other in found):
            return None
        shown = self.output_name(name)
        if any(tensor is None for tensor in found):
            facts = ["missing" if tensor is None else "present" for tensor in found]
            return self._fact(shown, "missing", facts)
        tensors = [tensor for tensor in found if tensor is not None]
        if len({tensor.spec.shape for tensor in tensors}) > 1:
            shapes = [str(list(tensor.spec.shape)) for tensor in tensors]
            return self._fact(shown, "shape", shapes)
        if self._policy.mixed_dtypes and all(
            _compatible(tensor, tensors[-1]) for tensor in tensors
        ):
            return None
        if len({tensor.spec.dtype.name for tensor in tensors}) > 1:
            return self._fact(shown, "dtype", [tensor.spec.dtype.name for tensor in tensors])
        return None

    def _fact(self, name: str, what: str, facts: Sequence[str]) -> Difference:
        return Difference(name, what, tuple(zip(self._inputs, facts, strict=True)))

    def decide(
        self, name: str, found: Sequence[Tensor | None]
    ) -> tuple[Task | None, Treated | None]:
        """The task for ``name`` (None if it is left out), and what to report of it."""
        shown = self.output_name(name)
        last = max(index for index in self._all if found[index] is not None)
        reference = found[last]
        assert reference is not None
        if not self.selected(name):
            if self._policy.drop_excluded:
                return None, Treated(shown, "excluded", "dropped")
            task = self._copy(shown, last, reference)
            return task, Treated(shown, "excluded", f"copied from {self._inputs[last]}")
        alike = [i for i in self._all if _compatible(found[i], reference)]
        if len(alike) == len(self._all):
            tensors = tuple(tensor for tensor in found if tensor is not None)
            return self._average(shown, self._all, tensors, self._weights), None
        why = "; ".join(
            f"{'missing' if found[i] is None else _describe(found[i])} in {self._inputs[i]}"
            for i in self._all
            if i not in alike
        )
        if self._policy.missing == "drop":
            return None, Treated(shown, "dropped", why)
        if self._policy.missing == "keep" or len(alike) == 1:
            task = self._copy(shown, last, reference)
            return task, Treated(shown, "copied", f"from {self._inputs[last]}: {why}")
        tensors = tuple(tensor for i, tensor in enumerate(found) if i in alike and tensor)
        weights = renormalized(self._weights, alike)
        task = self._average(shown, tuple(alike), tensors, weights)
        return task, Treated(shown, "averaged over some", why)

    def _average(
        self,
        name: str,
        inputs: tuple[int, ...],
        sources: tuple[Tensor, ...],
        weights: Sequence[float],
    ) -> Task:
        dtype, shape = sources[0].spec.dtype, sources[0].spec.shape
        uniform = self._uniform if inputs is self._all else is_uniform(weights)
        kind: Literal["average", "integer"] = "average" if dtype.floating else "integer"
        return Task(
            name, kind, self._output_dtype(dtype), shape, inputs, sources, tuple(weights), uniform
        )

    def _copy(self, name: str, index: int, source: Tensor) -> Task:
        dtype = self._output_dtype(source.spec.dtype)
        kind: Literal["copy", "average"] = "copy" if dtype is source.spec.dtype else "average"
        shape = source.spec.shape
        return Task(name, kind, dtype, shape, (index,), (source,), (1.0,), True)

    def _output_dtype(self, dtype: DType) -> DType:
        wanted = self._policy.dtype
        return BY_NAME[wanted] if wanted != "keep" and dtype.kind == "float" else dtype

    def written_ties(self, tasks: Sequence[Task]) -> tuple[tuple[str, ...], ...]:
        """Tie groups whose names all have a task, under their output names."""
        have = {task.name for task in tasks}
        groups = (tuple(self.output_name(name) for name in group) for group in self._groups)
        kept = (tuple(name for name in group if name in have) for group in groups)
        return tuple(group for group in kept if len(group) > 1)

    def complain_about_nothing(self, names: Sequence[str]) -> None:
        policy = self._policy
        if policy.include or policy.exclude:
            raise RequestError(
                f"--include and --exclude leave none of {len(names)} tensors to average.",
                hint=f"Names look like '{names[0]}'." if names else None,
            )
        if not names:
            raise MismatchError("The checkpoints hold no tensors.")
        raise MismatchError(
            "The checkpoints have no tensor in common: no name has the same shape in all.",
            hint="Are they of the same model? For a .pt file, --key chooses the state dict.",
        )


def _compatible(tensor: Tensor | None, reference: Tensor) -> bool:
    """True if a lenient average may join the two: same shape, both floats or the same integers."""
    if tensor is reference:
        return True
    if tensor is None or tensor.spec.shape != reference.spec.shape:
        return False
    one, other = tensor.spec.dtype, reference.spec.dtype
    return one is other or (one.kind == other.kind and one.floating)


def _describe(tensor: Tensor | None) -> str:
    assert tensor is not None
    return f"{tensor.spec.dtype} {list(tensor.spec.shape)}"
