"""The running statistics that a checkpoint's weights have on data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from swavg.engine.kernels.torch import check_device
from swavg.errors import MismatchError, RequestError, some
from swavg.evaluation.user_objects import users_code
from swavg.formats.checkpoint import Checkpoint
from swavg.planning.match import spelling
from swavg.planning.rename import rules
from swavg.training.apply import apply_swa
from swavg.training.batches import examples, to_device
from swavg.training.batchnorm import update_bn
from swavg.training.known_as import known_as
from swavg.training.places import own_tensors

OnBatch = Callable[[int, int | None], None]
"""Called after each batch with the number done, and in all (None: unknown)."""


@dataclass(frozen=True, eq=False, slots=True)
class FreshStatistics:
    """What was recomputed."""

    tensors: dict[str, torch.Tensor]
    """The new statistics, by the names that they have in the checkpoint."""
    layers: int
    """That have new ones."""
    batches: int
    examples: int | None
    """None if a batch does not tell."""
    notes: tuple[str, ...]


def fresh_statistics(
    model: nn.Module,
    checkpoint: Checkpoint,
    batches: Iterable[Any],
    limit: int | None = None,
    device: str = "cpu",
    on_batch: OnBatch | None = None,
    strip_prefix: Sequence[str] = (),
) -> FreshStatistics:
    """Put a checkpoint into ``model``, on ``device``, and recompute its statistics on at most
    ``limit`` batches. ``strip_prefix`` does not count in the model's names. Raises MismatchError
    and RequestError."""
    _check_layers(model)
    model.to(device_of(device))
    names, _ = known_as(model, [checkpoint], rules(strip_prefix))
    notes = _fill(model, checkpoint, names.values(), strip_prefix)
    seen = _Seen(limit, device, on_batch)
    with torch.no_grad():
        written = _run(model, seen.of(batches))
    tensors = own_tensors(model)
    changed = {id(tensors[name]) for name in written if name in tensors}
    layers, unused = _used(tensors, changed)
    if not layers:
        raise RequestError(f"No batch came by a batch-norm layer of {type(model).__name__}.")
    if unused:
        notes.append(
            f"no batch came by {some(unused, 3)} ({len(unused)} layers): as in the average"
        )
    found = _by_checkpoint_name(tensors, names, changed, checkpoint)
    return FreshStatistics(found, layers, seen.batches, seen.examples, tuple(notes))


def device_of(name: str) -> torch.device:
    """The torch device ``name``; RequestError if this machine has none."""
    try:
        return check_device(name)
    except RequestError as error:
        # Its own hint is for averages, which are the same on all devices.
        raise RequestError(error.message, hint="Use cpu, cuda or cuda:N.") from None


def _check_layers(model: nn.Module) -> None:
    """RequestError if no layer has running statistics."""
    kind = nn.modules.batchnorm._NormBase
    layers = [module for module in model.modules() if isinstance(module, kind)]
    if all(layer.running_mean is None for layer in layers):
        without = f" (its {len(layers)} layers keep none)" if layers else ""
        raise RequestError(
            f"{type(model).__name__} has no batch-norm with running statistics{without}:"
            " there is nothing to recompute.",
            hint="The average can be used as it is.",
        )


def _fill(
    model: nn.Module,
    checkpoint: Checkpoint,
    names: Collection[str],
    strip_prefix: Sequence[str],
) -> list[str]:
    """Put the checkpoint into the model; notes on what of it the model lacks."""
    try:
        apply_swa(model, [checkpoint], strip_prefix=strip_prefix, allow_nonfinite=True)
    except MismatchError as error:
        if not error.differences:
            raise
        # Files of torch before 0.4.1 do not count the batches.
        counters = [
            each.what == "missing" and each.name.endswith("num_batches_tracked")
            for each in error.differences
        ]
        if not counters or not all(counters):
            raise MismatchError(
                _brief(error),
                differences=error.differences,
                hint="Is it the model that was averaged? In a .pt, key= chooses the state dict.",
            ) from None
        apply_swa(
            model, [checkpoint], strict=False, strip_prefix=strip_prefix, allow_nonfinite=True
        )
    spell = spelling(list(names), list(checkpoint.tensors))
    known = set(map(spell, names))
    others = [name for name in map(spell, checkpoint.tensors) if name not in known]
    if not others:
        return []
    count = f"{len(others)} of {len(checkpoint)} tensors"
    return [f"the model has no {some(others, 3)} ({count}): copied"]


def _brief(error: MismatchError) -> str:
    """That it does not fit, with the first name: a list of all stands above it."""
    first, *others = error.differences
    more = f" and {len(others)} more" if others else ""
    return f"The checkpoint does not fit the model: '{first.name}'{more}."


class _Seen:
    """Counts the batches that go through, on their way to the device."""

    def __init__(self, limit: int | None, device: str, on_batch: OnBatch | None) -> None:
        if limit is not None and limit < 1:
            raise RequestError("At least one batch is needed.")
        self._limit = limit
        self._device = device
        self._on_batch = on_batch
        self.batches = 0
        self.examples: int | None = 0

    def of(self, batches: Iterable[Any]) -> Iterator[Any]:
        total = getattr(batches, "total", None)
        if self._limit is not None:
            total = self._limit if total is None else min(self._limit, total)
        for batch in itertools.islice(batches, self._limit):
            yield to_device(batch, self._device)
            self.batches += 1
            count = examples(batch)
            before = self.examples
            self.examples = None if before is None or count is None else before + count
            if self._on_batch is not None:
                self._on_batch(self.batches, total)


def _run(model: nn.Module, batches: Iterator[Any]) -> list[str]:
    first = next(batches, None)
    if first is None:
        raise RequestError(
            "The data gave no batches: there is nothing to compute statistics on.",
            hint="Was a generator used up, or is the data set smaller than a batch (drop_last)?",
        )
    hint = "A batch is (inputs..., target), one tensor, or a mapping of keyword arguments."
    with users_code("Running the model on the data failed", hint):
        return update_bn(model, itertools.chain([first], batches))


def _used(own: Mapping[str, torch.Tensor], changed: Set[int]) -> tuple[int, list[str]]:
    """How many layers have new statistics, and the names of the others that have any."""
    means = {id(own[name]): name for name in own if name.rpartition(".")[2] == "running_mean"}
    unused = [
        name.removesuffix(".running_mean") for key, name in means.items() if key not in changed
    ]
    return len(means) - len(unused), unused


def _by_checkpoint_name(
    own: Mapping[str, torch.Tensor],
    names: Mapping[str, str],
    changed: Set[int],
    checkpoint: Checkpoint,
) -> dict[str, torch.Tensor]:
    """The new buffers by the names that they have in the checkpoint."""
    spell = spelling(list(names.values()), list(checkpoint.tensors))
    actual = {spell(name): name for name in checkpoint.tensors}
    found = {}
    for name, tensor in own.items():
        # One that is used under two names has its statistics under both.
        if id(tensor) in changed and spell(names[name]) in actual:
            found[actual[spell(names[name])]] = tensor
    for group in checkpoint.ties:
        given = next((found[name] for name in group if name in found), None)
        if given is not None:
            found.update({name: given for name in group if name not in found})
    return found
