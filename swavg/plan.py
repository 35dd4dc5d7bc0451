"""Deciding, before anything is read or written, what happens to each tensor.

Pure functions from opened checkpoints to an immutable, picklable :class:`Plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swavg.dtypes import Accumulator
from swavg.errors import Difference, MismatchError
from swavg.formats.base import Checkpoint, Task
from swavg.matching import Matcher, Treated
from swavg.policy import Policy


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


def accumulator(task: Task, policy: Policy) -> Accumulator:
    """The dtype in which a task sums: the widest that its inputs ask for, unless fixed."""
    if policy.accumulate != "auto":
        return policy.accumulate
    wide = any(source.spec.dtype.accumulator == "float64" for source in task.sources)
    return "float64" if wide else "float32"


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
    matcher = Matcher(checkpoints, weights, policy, inputs, ties)
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
    if not matcher.joined:
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
    message = (
        f"{source}: '{first.name}' is {fact}; {other_source} has "
        f"{'it' if other_fact == 'present' else other_fact}."
        if fact != "present"
        else f"{other_source}: '{first.name}' is {other_fact}; {source} has it."
    )
    if len(differences) > 1:
        message += f" {len(differences)} tensors differ."
        hint = "Use --lenient, or leave what differs out with --exclude."
    else:
        glob = f"{first.name.split('.')[0]}.*" if "." in first.name else first.name
        hint = f"Leave it out with --exclude '{glob}' or use --lenient."
    return MismatchError(message, differences=differences, hint=hint)
