"""Weights into the model, and its score: sums of checkpoints, and checkpoints by themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import nn

from swavg.evaluation.survey import Point, Scorer, Value
from swavg.formats.checkpoint import Checkpoint
from swavg.training.model_plan import ModelPlan

Evaluate = Callable[[], Value]
"""Evaluates the model as it is."""


def score_checkpoint(
    model: nn.Module,
    checkpoint: Checkpoint,
    evaluate: Evaluate,
    strip_prefix: Sequence[str] = (),
) -> Value:
    """What ``evaluate`` says of the model with the weights of one checkpoint, which it keeps.

    ``strip_prefix`` does not count in the model's names. Raises MismatchError if a tensor of the
    model is missing in the checkpoint or has another shape there; NaN and Inf are let through.
    """
    with _plan(model, [checkpoint], strip_prefix) as plan:
        plan.apply([1.0])
        return evaluate()


@contextmanager
def scoring(
    model: nn.Module,
    evaluate: Evaluate,
    checkpoints: Sequence[Checkpoint],
    others: Sequence[Checkpoint] = (),
    strip_prefix: Sequence[str] = (),
) -> Iterator[Scorer]:
    """A scorer of sums of ``checkpoints``, and of ``others`` by themselves, in the block.

    The model holds the weights of the point that was scored last. Otherwise as
    :func:`score_checkpoint`; whether all fit the model is known before the first is scored.
    """
    with ExitStack() as files:
        sums = None
        if checkpoints:
            sums = files.enter_context(_plan(model, checkpoints, strip_prefix))
        # One at a time is held: those of a run have equal headers, of which one is looked at.
        for each in {id(other.tensors.columns): other for other in others}.values():
            with _plan(model, [each], strip_prefix):
                pass

        def score(point: Point) -> Value:
            if point.own is not None:
                return score_checkpoint(model, others[point.own], evaluate, strip_prefix)
            assert sums is not None
            assert point.coefficients is not None
            # They sum to 1 but for their rounding, which must not be an error.
            sums.apply(point.coefficients)
            return evaluate()

        yield score


def _plan(
    model: nn.Module, members: Sequence[Checkpoint], strip_prefix: Sequence[str]
) -> ModelPlan:
    return ModelPlan(model, members, strip_prefix=strip_prefix, allow_nonfinite=True)
