"""The loss and error rate of a model over data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from swavg.errors import RequestError
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


@dataclass(frozen=True, slots=True)
class Score:
    """The mean ``loss`` and the share of wrong classes (None without classes) of ``examples``."""

    loss: float
    error: float | None
    examples: int


def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    loss: LossFunction | None = None,
    bn_data: Iterable[Any] | None = None,
) -> Score:
    """Mean loss over the examples of ``batches``, and the share of them that is wrong.

    The model runs in evaluation mode without gradients; its modes are restored. Without ``loss``
    it is the model's own (``outputs.loss``, as Hugging Face models return it for labels, taken as a
    mean over the batch), or cross-entropy of logits (outputs, ``outputs.logits``, or the first of
    several) and integer targets, of which -100 is left out. Logits have their classes in dimension
    1 or last; each target counts as an example. With ``bn_data`` the model's batch-norm statistics
    are recomputed over it first. Raises RequestError for data that do not fit.
    """
    if bn_data is not None:
        with users_code("recomputing batch-norm statistics failed"):
            update_bn(model, bn_data)
    total, wrong, counted, judged, number = 0.0, 0, 0, True, 0
    with torch.no_grad(), evaluating(model):
        for number, batch in enumerate(batches, 1):
            with users_code(f"the model failed on batch {number}"):
                outputs = forward(model, batch)
            target = split(batch)[2]
            value, count = _loss_of(outputs, target, batch, loss, number)
            total += value
            counted += count
            misses = _misses(outputs, target)
            judged = judged and misses is not None
            wrong += misses or 0
    if not counted:
        raise RequestError(
            "the data have no batches." if not number else "the data have no examples to count.",
            hint="Is the loader empty, or are all targets -100?",
        )
    return Score(total / counted, wrong / counted if judged else None, counted)


def _loss_of(
    outputs: object, target: object, batch: object, loss: LossFunction | None, number: int
) -> tuple[float, int]:
    """The sum of losses over a batch and of how many examples."""
    if loss is not None:
        try:
            own = loss(outputs, target)
        except Exception as error:
            raise failed(f"the loss failed on batch {number}", error) from error
    else:
        own = _entry(outputs, "loss")
    if own is not None:
        value = own if isinstance(own, Tensor) else torch.as_tensor(own)
        if value.ndim:
            return float(value.double().sum()), value.numel()
        count = examples(batch)
        if count is None:
            raise RequestError(
                f"batch {number} does not say how many examples it has.",
                hint="Let loss= return one loss for each example.",
            )
        return float(value) * count, count
    fitted = _fitted(outputs, target)
    if fitted is None:
        raise RequestError(
            f"batch {number}: the model returns {_described(_logits(outputs))} for"
            f" {_described(target)}, which is not what"
            " cross-entropy takes: logits of classes and integer targets.",
            hint="Name a function of outputs and target with loss=, such as"
            " torch.nn.functional:mse_loss.",
        )
    logits, classes = fitted
    summed = functional.cross_entropy(
        logits.float(), classes, reduction="sum", ignore_index=IGNORED
    )
    return float(summed), int((classes != IGNORED).sum())


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
