"""Batch-norm statistics computed anew: one pass over data, exact cumulative averages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from swavg.errors import RequestError
from swavg.training.batches import forward_first, to_device
from swavg.training.wrapped import check_module, modules, unwrap


def update_bn(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> list[str]:
    """Recompute the running statistics of batch-norm layers in one pass over ``batches``.

    Their running mean and variance become the averages of those of the batches, and their counters
    count these alone. As in ``torch.optim.swa_utils.update_bn`` each batch counts the same, a
    small last one too, and on the same network without dropout the results are the same bits. (The
    variance of the batches' means is not added: it is the variance within a batch, of which
    batch-norm makes use in training.)

    Only the batch-norm layers are in training mode meanwhile: dropout is off, as it is where the
    statistics are used. Instance-norm layers that track statistics are treated alike. Modes and
    momenta are set back afterwards; after an error, in the data too, the statistics as well.
    Layers that no batch comes by keep theirs. In half precision averages are kept in float64.

    A batch is a tensor, a tuple or list whose first item is the input (the first ones, if the model
    needs more), or a mapping of keyword arguments; ``forward(model, batch)`` does something else
    with it. ``device`` is where batches are
    moved. The model is used without its DDP and compile wrappers, so each rank computes over what
    it is given: give all ranks the same batches (or use SyncBatchNorm, which has statistics over
    all ranks).

    Returns the plain names of the buffers that were recomputed. Raises RequestError if there is no
    batch.
    """
    check_module(
        model,
        "It is update_bn(model, batches); of an average swa.update_bn(batches), or update_bn of the"
        " model within ema.applied().",
    )
    run = forward_first if forward is None else forward
    inner = unwrap(model)
    layers: dict[_NormBase, _Layer] = {}
    for _, prefix, module in modules(inner):
        if isinstance(module, _NormBase) and module.running_mean is not None:
            layers.setdefault(module, _Layer(prefix, module))
    if not layers:
        return []
    used = 0
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_interpreted())
        stack.enter_context(evaluating(inner, layers))
        for layer in layers.values():
            stack.enter_context(layer.counting())
        for batch in batches:
            used += 1
            if device is not None:
                batch = to_device(batch, device)
            run(inner, batch)
        if used == 0:
            raise RequestError(
                "There is no batch to compute batch-norm statistics from.",
                hint="An iterator that was used up gives none: pass a DataLoader or a list.",
            )
        for layer in layers.values():
            layer.finish()
    return [name for layer in layers.values() for name in layer.changed]


def has_statistics(model: nn.Module) -> bool:
    """Whether :func:`update_bn` would have anything to recompute."""
    return any(
        isinstance(module, _NormBase) and module.running_mean is not None
        for *_, module in modules(model)
    )


class _Layer:
    """One layer: its old statistics, and the averages as they grow."""

    def __init__(self, prefix: str, module: _NormBase) -> None:
        self._prefix = prefix
        self._module = module
        self._momentum = module.momentum
        self._old = {name: tensor.clone() for name, tensor in self._buffers()}
        self._batches = 0
        # Cumulative averages in half precision stop moving: each new batch's part rounds to 0.
        wide = module.running_mean is not None and module.running_mean.itemsize < 4
        self._wide: dict[str, Tensor] | None = {} if wide else None
        self._done = False

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            tensor = getattr(self._module, name, None)
            if tensor is not None:
                yield name, tensor

    @property
    def changed(self) -> list[str]:
        # Instance-norm has a counter, too, but does not count.
        counts = isinstance(self._module, _BatchNorm)
        names = [name for name, tensor in self._buffers() if counts or tensor.is_floating_point()]
        return [self._prefix + name for name in names] if self._batches else []

    @contextmanager
    def counting(self) -> Iterator[None]:
        before = self._module.register_forward_pre_hook(self._before)
        after = self._module.register_forward_hook(self._after)
        self._module.reset_running_stats()
        try:
            yield
        finally:
            before.remove()
            after.remove()
            self._module.momentum = self._momentum
            if not self._done or self._batches == 0:
                for name, tensor in self._buffers():
                    tensor.copy_(self._old[name])

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._batches += 1
        # As the momentum: instance-norm has no cumulative average of its own.
        self._module.momentum = 1 / self._batches if self._wide is None else 1.0

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._wide is None:
            return
        for name, tensor in self._buffers():
            if tensor.is_floating_point():
                now = tensor.double()
                average = self._wide.setdefault(name, now.clone())
                average.lerp_(now, 1 / self._batches)

    def finish(self) -> None:
        for name, tensor in self._buffers():
            if self._wide is not None and name in self._wide:
                tensor.copy_(self._wide[name])
        self._done = True


@contextmanager
def evaluating(model: nn.Module, training: Iterable[nn.Module] = ()) -> Iterator[None]:
    """In the block, modules are in evaluation mode but for those of ``training``; as before after
    it."""
    before = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        for module in training:
            module.training = True
        yield
    finally:
        for module, mode in before:
            module.training = mode


def _interpreted() -> AbstractContextManager[Any]:
    """Without compiled code, which would be compiled anew for every momentum."""
    stance = getattr(torch.compiler, "set_stance", None)
    if stance is None or "torch._dynamo" not in sys.modules:
        # Nothing is compiled; only importing that takes a second.
        return nullcontext()
    context: AbstractContextManager[Any] = stance("force_eager")
    return context
