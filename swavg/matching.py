"""The tensors of several checkpoints side by side, by name, and what becomes of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from swavg.dtypes import BY_NAME, DType
from swavg.errors import Difference, MismatchError, RequestError
from swavg.formats.base import Checkpoint, Task, Tensor
from swavg.policy import Policy
from swavg.weights import is_uniform, renormalized


@dataclass(frozen=True, slots=True)
class Treated:
    """A tensor that was not simply averaged over all inputs: ``how`` and ``why``, in words."""

    name: str
    how: Literal["copied", "dropped", "averaged over some", "excluded", "pooled"]
    why: str


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


class Matcher:
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
        self.joined = False
        """Whether any selected tensor was found alike in all checkpoints."""
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
            why = f"copied from {self._inputs[last]}{_as(task)}"
            return task, Treated(shown, "excluded", why)
        alike = [i for i in self._all if _compatible(found[i], reference)]
        if len(alike) == len(self._all):
            self.joined = True
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
            return task, Treated(shown, "copied", f"from {self._inputs[last]}{_as(task)}: {why}")
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
        if (policy.include or policy.exclude) and not any(map(self.selected, names)):
            raise RequestError(
                f"--include and --exclude leave none of {len(names)} tensors to average.",
                hint=f"Names look like '{names[0]}'." if names else None,
            )
        if not names:
            raise MismatchError("The checkpoints hold no tensors.")
        raise MismatchError(
            "The checkpoints have no tensor in common: no name has the same shape and kind of"
            " dtype in all.",
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


def _as(task: Task) -> str:
    """What a copy is converted to, in words."""
    return "" if task.kind == "copy" else f", as {task.dtype}"


def _describe(tensor: Tensor | None) -> str:
    assert tensor is not None
    return f"{tensor.spec.dtype} {list(tensor.spec.shape)}"
