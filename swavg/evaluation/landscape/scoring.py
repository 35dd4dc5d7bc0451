"""Scores of the points of a survey: weights streamed into a model, and the model over the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from swavg.evaluation.landscape.survey import GridPoint, Scorer, Value
from swavg.formats.checkpoint import Checkpoint

if TYPE_CHECKING:
    from swavg.evaluation.evaluate import Evaluator, Module


@contextmanager
def scoring(
    model: Module,
    evaluator: Evaluator,
    checkpoints: Sequence[Checkpoint],
    others: Sequence[Checkpoint] = (),
) -> Iterator[Scorer]:
    """A scorer of sums of ``checkpoints``, and of ``others`` by themselves, in the block.

    The model holds the weights of the point that was scored last. Raises MismatchError if a tensor
    of the model is missing in a file or has another shape there.
    """
    from swavg.training.model_plan import ModelPlan

    with ExitStack() as files:
        sums = files.enter_context(ModelPlan(model, checkpoints, allow_nonfinite=True))
        alone = [
            files.enter_context(ModelPlan(model, [each], allow_nonfinite=True)) for each in others
        ]

        def score(point: GridPoint) -> Value:
            if point.own is not None:
                alone[point.own].apply([1.0])
            else:
                assert point.coefficients is not None
                # They sum to 1 but for their rounding, which must not be an error.
                sums.apply(point.coefficients)
            found = evaluator.score()
            return Value(found.loss, found.error, found.examples)

        yield score
