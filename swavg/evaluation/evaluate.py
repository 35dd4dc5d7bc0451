"""The loss and error rate of a model over data, and what a function of the user's says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from swavg.errors import RequestError
from swavg.evaluation.survey import Value
from swavg.evaluation.user_objects import failed, kind, users_code
from swavg.training.batches import examples, forward, split
from swavg.training.batchnorm import evaluating, update_bn
from swavg.training.places import own_tensors

Module = nn.Module

LossFunction = Callable[[Any, Any], Any]
"""Called with the model's outputs and the target of a batch (None if it has none). Returns a scalar
tensor, the mean over the batch's examples, or a tensor with one loss each."""

IGNORED = -100
"""The target that cross-entropy leaves out."""


@dataclass(slots=True)
class _Mean:
    """Of numbers of batches, by their examples."""

    total: float = 0.0
    examples: int = 0

    def add(self, summed: float, count: int) -> None:
        self.total += summed
        self.examples += count


def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    loss: LossFunction | None = None,
    bn_data: Iterable[Any] | None = None,
    metric: LossFunction | None = None,
) -> Value:
    """Mean loss over the examples of ``batches``, and the share of them that is wrong.

    The model runs in evaluation mode without gradients; its modes are restored. Without ``loss``
    it is the model's own (``outputs.loss``, as Hugging Face models return it for labels, taken as a
    mean over the batch), or cross-entropy of logits (outputs, ``outputs.logits``, or the first of
    several) and integer targets, of which -100 is left out. Logits have their classes in dimension
    1 or last; each target counts as an example. With ``bn_data`` the model's batch-norm statistics
    are recomputed over it first. ``metric`` is called as ``loss`` is; where outputs are no logits
    of classes, it does without a loss. Raises RequestError for data that do not fit.
    """
    if bn_data is not None:
        with users_code("recomputing batch-norm statistics failed"):
            update_bn(model, bn_data)
    losses, own, wrong, judged, number = _Mean(), _Mean(), 0, True, 0
    lossless = False
    with torch.no_grad(), evaluating(model):
        for number, batch in enumerate(batches, 1):
            with users_code(f"the model failed on batch {number}"):
                outputs = forward(model, batch)
            target = split(batch)[2]
            if metric is not None:
                own.add(*_called(metric, "metric", outputs, target, batch, number))
            summed = _loss_of(outputs, target, batch, loss, number)
            if summed is None and metric is None:
                raise _unfit(outputs, target, number)
            losses.add(*(summed or (0.0, 0)))
            lossless = lossless or summed is None
            misses = _misses(outputs, target)
            judged = judged and misses is not None
            wrong += misses or 0
    counted = own if lossless else losses
    if not counted.examples or (metric is not None and not own.examples):
        raise RequestError(
            "the data have no batches." if not number else "the data have no examples to count.",
            hint="Is the loader empty, or are all targets -100?",
        )
    return Value(
        None if lossless else losses.total / losses.examples,
        wrong / counted.examples if judged else None,
        counted.examples,
        own.total / own.examples if own.examples else None,
    )


def _called(
    function: LossFunction, name: str, outputs: object, target: object, batch: object, number: int
) -> tuple[float, int]:
    """The sum over a batch of what the user's function says, and of how many examples."""
    try:
        found = function(outputs, target)
    except Exception as error:
        raise failed(f"the {name} failed on batch {number}", error) from error
    return _summed(found, name, batch, number)


def _summed(value: object, name: str, batch: object, number: int) -> tuple[float, int]:
    try:
        found = value if isinstance(value, Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise RequestError(
            f"batch {number}: the {name} is {kind(value)}, not a number for the batch or one for"
            " each example."
        ) from None
    if found.ndim:
        return float(found.double().sum()), found.numel()
    count = examples(batch)
    if count is None:
        raise RequestError(
            f"batch {number} does not say how many examples it has.",
            hint=f"Let the {name} function return a value for each example.",
        )
    return float(found) * count, count


def _loss_of(
    outputs: object, target: object, batch: object, loss: LossFunction | None, number: int
) -> tuple[float, int] | None:
    """The sum of losses over a batch and of how many examples; None if there is none to take."""
    if loss is not None:
        return _called(loss, "loss", outputs, target, batch, number)
    own = _entry(outputs, "loss")
    if own is not None:
        return _summed(own, "loss", batch, number)
    fitted = _fitted(outputs, target)
    if fitted is None:
        return None
    logits, classes = fitted
    summed = functional.cross_entropy(
        logits.float(), classes, reduction="sum", ignore_index=IGNORED
    )
    return float(summed), int((classes != IGNORED).sum())


def _unfit(outputs: object, target: object, number: int) -> RequestError:
    return RequestError(
        f"batch {number}: the model returns {_described(_logits(outputs))} for"
        f" {_described(target)}, which is not what"
        " cross-entropy takes: logits of classes and integer targets.",
        hint="Name a function of outputs and target with loss=, such as"
        " torch.nn.functional:mse_loss.",
    )


def _misses(outputs: object, target: object) -> int | None:
    """How many targets are not the class of the highest logit; None where there are no classes."""
    fitted = _fitted(outputs, target)
    if fitted is None:
        return None
    logits, classes = fitted
    return int(((logits.argmax(dim=1) != classes) & (classes != IGNORED)).sum())


def _fitted(outputs: object, target: object) -> tuple[Tensor, Tensor] | None:
    """Logits with their classes in dimension 1 and integer targets of the other dimensions."""
    logits = _logits(outputs)
    if (
        not isinstance(logits, Tensor)
        or not isinstance(target, Tensor)
        or not logits.is_floating_point()
        or target.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
        or logits.ndim != target.ndim + 1
        or logits.ndim < 2
    ):
        return None
    shape = tuple(logits.shape)
    if (shape[0], *shape[2:]) == tuple(target.shape) and shape[1] > 1:
        return logits, target.long()
    # A causal language model's labels belong to other positions; such a model gives its own loss.
    if shape[:-1] == tuple(target.shape) and _entry(outputs, "loss") is None and shape[-1] > 1:
        return logits.movedim(-1, 1), target.long()
    return None


def _logits(outputs: object) -> object:
    found = _entry(outputs, "logits")
    if found is None and isinstance(outputs, (tuple, list)) and outputs:
        return outputs[0]
    return outputs if found is None else found


def _entry(outputs: object, name: str) -> object:
    if isinstance(outputs, Tensor):
        return None
    return outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return "no target" if value is None else kind(value)


def parameter_names(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """The model's floating-point parameters by the names that they have without wrappers, a tied
    one under all of them."""
    groups: dict[int, list[str]] = {}
    for name, tensor in own_tensors(model).items():
        numbers = tensor.is_floating_point() or tensor.is_complex()
        if numbers and isinstance(tensor, nn.Parameter):
            groups.setdefault(id(tensor), []).append(name)
    return tuple(map(tuple, groups.values()))
