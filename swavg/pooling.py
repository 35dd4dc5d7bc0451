"""Planning ``--pool-batch-norm``: running variances that become those of a mixture of the inputs.

Layers are found by their names: ``X.running_var`` beside ``X.running_mean``, of one shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from swavg.errors import RequestError
from swavg.formats.base import Task
from swavg.weights import sums_to_one

_VARIANCE, _MEAN = "running_var", "running_mean"


def pool_statistics(tasks: Sequence[Task]) -> tuple[list[Task], list[str]]:
    """The tasks with variances pooled where that can be, and the names of those where it cannot:
    where the mean is not averaged over the same inputs with the same weights.

    A pooled task has the variances as sources, then the means, with inputs and weights twice.
    Raises RequestError for weights that are no mixture: negative, or not of sum 1.
    """
    by_name = {task.name: task for task in tasks}
    found: list[Task] = []
    not_pooled: list[str] = []
    for task in tasks:
        if not _is_variance(task) or task.kind != "average" or len(task.inputs) < 2:
            found.append(task)
            continue
        mean = by_name.get(mean_of(task.name))
        if mean is None or not _fits(task, mean):
            found.append(task)
            not_pooled.append(task.name)
            continue
        _check_mixture(task)
        found.append(
            replace(
                task,
                kind="pooled",
                inputs=task.inputs * 2,
                sources=task.sources + mean.sources,
                weights=task.weights * 2,
            )
        )
    return found, not_pooled


def mean_of(variance: str) -> str:
    """The name of the mean that goes with the running variance of this name."""
    return variance.removesuffix(_VARIANCE) + _MEAN


def _is_variance(task: Task) -> bool:
    return task.name.rpartition(".")[2] == _VARIANCE and task.dtype.kind == "float"


def _fits(variance: Task, mean: Task) -> bool:
    return (
        mean.kind == "average"
        and mean.dtype.kind == "float"
        and mean.shape == variance.shape
        and mean.inputs == variance.inputs
        and mean.weights == variance.weights
    )


def _check_mixture(task: Task) -> None:
    if all(weight >= 0 for weight in task.weights) and sums_to_one(task.weights):
        return
    shown = ", ".join(f"{weight:.6g}" for weight in task.weights[:6])
    shown += ", ..." if len(task.weights) > 6 else ""
    raise RequestError(
        f"--pool-batch-norm needs weights of a mixture, none negative and of sum 1: not {shown}.",
        hint="Leave it out and recompute the statistics: swavg bn OUT --model ... --data ...",
    )
