"""Putting averaged bytes where a template's tensors lie, and copying everything between."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from swavg.errors import InputError, OutputError
from swavg.formats.base import Checkpoint, Extent, Task, Tensor, TensorSpec, copy_of_bytes
from swavg.formats.read import row_major_strides
from swavg.formats.torch_tensors import normal_strides


@dataclass(frozen=True, slots=True)
class Replacement:
    """The bytes of ``task`` go to ``offset`` of the template's file."""

    offset: int
    task: Task

    @property
    def end(self) -> int:
        return self.offset + self.task.nbytes


def storage_order(tensor: Tensor) -> tuple[int, ...] | None:
    """The axes of a dense view from the slowest to the fastest; None if it has holes or repeats."""
    shape, strides = tensor.spec.shape, tensor.extent.strides
    if strides is None:
        return tuple(range(len(shape)))
    axes = sorted(range(len(shape)), key=lambda axis: (-strides[axis], axis))
    # Axes of one element go first: they have no place of their own.
    axes.sort(key=lambda axis: shape[axis] != 1)
    sizes = tuple(shape[axis] for axis in axes)
    if normal_strides(sizes, tuple(strides[axis] for axis in axes)) is not None:
        return None
    return tuple(axes)


def permuted(task: Task, axes: tuple[int, ...]) -> Task:
    """``task`` with its dimensions in the order of ``axes``: the same elements, written in another
    order. A source that lies in that order becomes row-major."""
    if axes == tuple(range(len(task.shape))):
        return task
    sources = []
    for source in task.sources:
        shape = source.spec.shape
        strides = source.extent.strides or row_major_strides(shape)
        spec = TensorSpec(source.spec.name, source.spec.dtype, tuple(shape[axis] for axis in axes))
        turned = normal_strides(spec.shape, tuple(strides[axis] for axis in axes))
        sources.append(Tensor(spec, dataclasses.replace(source.extent, strides=turned)))
    shape = tuple(task.shape[axis] for axis in axes)
    return dataclasses.replace(task, shape=shape, sources=tuple(sources))


def replacements(
    template: Checkpoint, template_input: int, tasks: Sequence[Task]
) -> tuple[Replacement, ...] | str:
    """Where the bytes of ``tasks`` (by the template's tensor names) go, in the order of the file;
    or the reason why the structure of ``template`` cannot be kept.

    One task is enough for tied names. A tensor that is copied from the template is left in place.
    """
    given: dict[Extent, tuple[Task, str]] = {}
    for task in tasks:
        tensor = template.tensors.get(task.name)
        if tensor is None:
            return f"'{task.name}' is not in {template.path}"
        if task.dtype != tensor.spec.dtype:
            return f"'{task.name}' is {tensor.spec.dtype} there and becomes {task.dtype}"
        if task.shape != tensor.spec.shape:
            return f"'{task.name}' has another shape there"
        if not tensor.spec.numel:
            continue
        first = given.setdefault(tensor.extent, (task, task.name))[0]
        if first is not task and _meaning(first) != _meaning(task):
            return f"'{task.name}' is tied to '{first.name}' there, and no longer the same"
    wanted = []
    covered = {task.name for task in tasks}
    for name, tensor in template.tensors.items():
        if tensor.extent not in given and name not in covered:
            return f"'{name}' is left out"
    for extent, (task, name) in given.items():
        tensor = template.tensors[name]
        if _stays(task, template_input, tensor):
            continue
        axes = storage_order(tensor)
        if axes is None:
            return f"'{name}' does not fill its part of the storage without gaps"
        if axes != tuple(range(len(axes))) and any(s.spec.dtype.bits % 8 for s in task.sources):
            return f"'{name}' lies in another order there"
        wanted.append(Replacement(extent.offset, permuted(task, axes)))
    wanted.sort(key=lambda replacement: replacement.offset)
    return _clash(template, {r.offset: r for r in wanted}) or tuple(wanted)


def _meaning(task: Task) -> tuple[object, ...]:
    """All that decides the bytes of a task."""
    sources = tuple((s.extent, s.spec.dtype.name) for s in task.sources)
    return task.kind, task.dtype.name, task.inputs, sources, task.weights, task.uniform


def _stays(task: Task, template_input: int, tensor: Tensor) -> bool:
    return (
        task.kind == "copy"
        and task.inputs == (template_input,)
        and task.sources[0].extent == tensor.extent
        and task.sources[0].spec.dtype == tensor.spec.dtype
    )


def _clash(template: Checkpoint, wanted: dict[int, Replacement]) -> str | None:
    """The reason if a replaced tensor shares some of its bytes with a different view."""
    distinct = {
        (tensor.extent, tensor.spec.dtype.name, tensor.spec.shape): tensor
        for tensor in template.tensors.values()
        if tensor.extent.nbytes
    }
    end_of_any = end_of_replaced = 0
    for tensor in sorted(distinct.values(), key=lambda tensor: tensor.extent.offset):
        offset, end = tensor.extent.offset, tensor.extent.offset + tensor.extent.nbytes
        here = wanted.get(offset)
        if offset < (end_of_any if here is not None else end_of_replaced):
            return f"'{tensor.spec.name}' shares a part of its bytes with another tensor"
        end_of_any = max(end_of_any, end)
        if here is not None:
            end_of_replaced = max(end_of_replaced, here.end)
    return None


def spliced(
    template_input: int, offset: int, nbytes: int, replaced: Sequence[Replacement]
) -> tuple[Task, ...]:
    """Tasks for ``nbytes`` of the template's file from ``offset`` on: the replacements that lie
    there, and copies of what is between. ``replaced`` is sorted; none crosses the ends."""
    tasks, position, end = [], offset, offset + nbytes
    first = bisect_left(replaced, offset, key=lambda replacement: replacement.offset)
    for replacement in replaced[first:]:
        if replacement.offset >= end:
            break
        if replacement.offset > position:
            tasks.append(copy_of_bytes(template_input, 0, position, replacement.offset - position))
        tasks.append(replacement.task)
        position = replacement.end
    if position < end:
        tasks.append(copy_of_bytes(template_input, 0, position, end - position))
    return tuple(tasks)


def check_written(path: str, reopen: Callable[[], Checkpoint], specs: Iterable[TensorSpec]) -> None:
    """OutputError unless the finished file opens and has just the tensors ``specs``."""
    try:
        found = reopen().specs
    except InputError as error:
        raise OutputError(path, f"the finished file does not open: {error.problem}") from error
    planned = {spec.name: spec for spec in specs}
    if found != planned:
        wrong = next(name for name in (*planned, *found) if planned.get(name) != found.get(name))
        raise OutputError(path, f"the finished file has another '{wrong}' than was planned")
