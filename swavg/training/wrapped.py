"""Models inside the wrappers of training: torch.compile, DDP, FSDP2, activation checkpointing."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from swavg.errors import RequestError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs

_INNER = {
    "OptimizedModule": "_orig_mod",
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "OffloadWrapper": "_checkpoint_wrapped_module",
}
"""Where torch's wrappers hold what they wrap, by the name of their class."""

_PLAIN = (Tensor, nn.Parameter)
"""Classes of which no DTensor is; an update asks for each tensor of a model."""


def check_module(model: object, hint: str | None = None) -> nn.Module:
    """The model; RequestError for what is no module, such as ``model.parameters()``."""
    if not isinstance(model, nn.Module):
        raise RequestError(
            f"A {type(model).__name__} is no model.",
            hint=hint or "Give the nn.Module itself, not its parameters() or state_dict().",
        )
    return model


def check_values(
    name: str, tensor: Tensor, on_meta: str = "Give the model its weights first."
) -> None:
    """Raise RequestError for a tensor that has no values here: in a lazy module that has not seen
    a batch, on the meta device (``on_meta`` is the hint), or in the hands of other ranks."""
    if is_lazy(tensor):
        raise RequestError(
            f"'{name}' has no shape yet.", hint="Send one batch through the model first."
        )
    if tensor.is_meta:
        raise RequestError(f"'{name}' is on the meta device: it has no values.", hint=on_meta)
    if hasattr(tensor, "ds_id") and tensor.numel() == 0:
        raise RequestError(
            f"'{name}' has no values here: DeepSpeed's ZeRO-3 has spread it over the ranks.",
            hint="Average ZeRO-1 or -2, or FSDP2; or average the checkpoints that are saved, with"
            " swavg average.",
        )


def is_expanded(tensor: Tensor) -> bool:
    """Whether several of its elements share one place in memory, so that it cannot be written."""
    return any(n > 1 and step == 0 for n, step in zip(tensor.shape, tensor.stride(), strict=True))


def inside(module: nn.Module) -> tuple[str, nn.Module] | None:
    """Attribute and module that a wrapper holds; None for a module that is no wrapper.

    Raises RequestError for the first FullyShardedDataParallel, whose parameters are pieces of one
    flat tensor without shapes of their own.
    """
    for kind in type(module).__mro__:
        if not kind.__module__.startswith("torch."):
            continue
        if kind.__name__ == "FullyShardedDataParallel":
            raise RequestError(
                "The model is in the first FullyShardedDataParallel, whose flat parameters cannot"
                " be averaged by name.",
                hint="Use torch.distributed.fsdp.fully_shard (FSDP2).",
            )
        if (attribute := _INNER.get(kind.__name__)) is not None:
            found: nn.Module = getattr(module, attribute)
            return attribute, found
    return None


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, below torch.compile and data-parallel wrappers."""
    while (found := inside(model)) is not None:
        model = found[1]
    return model


def modules(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Every module below the wrappers, in the order of ``named_modules``, and what its tensors'
    names begin with: in ``unwrap(model).state_dict()``, and in plain names, without wrappers.

    A module that is held twice comes twice, under each of its names.
    """
    pending = [("", "", unwrap(model))]
    while pending:
        raw, plain, module = pending.pop()
        while (found := inside(module)) is not None:
            raw, module = f"{raw}{found[0]}.", found[1]
        yield raw, plain, module
        children = [(name, child) for name, child in module._modules.items() if child is not None]
        pending += [(f"{raw}{name}.", f"{plain}{name}.", child) for name, child in children[::-1]]


def plain_names(model: nn.Module) -> dict[str, str]:
    """Name in ``unwrap(model).state_dict()`` to plain name, of parameters and buffers.

    They differ only where wrappers lie inside the model, as around compiled layers.
    """
    return {
        f"{raw}{name}": f"{plain}{name}"
        for raw, plain, module in modules(model)
        for name in (*module._parameters, *module._buffers)
    }


def plain_state(model: nn.Module, *, keep_vars: bool = False) -> dict[str, Any]:
    """The model's state dict by plain names; with ``keep_vars`` its tensors are the model's."""
    names = plain_names(model)
    # Some models' own state_dict() takes no arguments.
    inner = unwrap(model)
    state = inner.state_dict(keep_vars=True) if keep_vars else inner.state_dict()
    return {names.get(name, name): value for name, value in state.items()}


def is_sharded(tensor: object) -> TypeIs[DTensor]:
    """True for a DTensor, as parameters are under FSDP2 and tensor parallelism."""
    if type(tensor) in _PLAIN:
        return False
    home = _home_of_dtensor()
    return home is not None and isinstance(tensor, home.DTensor)


def _home_of_dtensor() -> Any:
    """The module of DTensor, None if it was not imported: then there is none either."""
    for name in ("torch.distributed.tensor", "torch.distributed._tensor"):
        if hasattr(home := sys.modules.get(name), "DTensor"):
            return home
    return None


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor, in its own memory; any other tensor, detached."""
    if not is_sharded(tensor):
        return tensor.detach()
    with torch.no_grad():
        return tensor.to_local()


def sharded_as(part: Tensor, like: Tensor) -> Tensor:
    """``part`` as this rank's part of a DTensor sharded as ``like``; as it is if that is none."""
    if not is_sharded(like):
        return part
    return type(like).from_local(
        part.to(local(like).device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def full(part: Tensor, like: Tensor) -> Tensor:
    """The whole of which ``part`` is this rank's, sharded as ``like`` is; a plain one as it is.

    A collective where ``like`` is a DTensor: all ranks call it, and all get the whole.
    """
    whole = sharded_as(part, like)
    return whole.full_tensor() if is_sharded(like) and is_sharded(whole) else part


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of ``whole``, which every rank has, sharded as ``like``. No collective."""
    if is_sharded(whole):
        return local(whole)
    if not is_sharded(like):
        return whole
    home = _home_of_dtensor()
    mesh = like.device_mesh
    everywhere = home.DTensor.from_local(
        whole.to(local(like).device), mesh, [home.Replicate()] * mesh.ndim, run_check=False
    )
    return local(everywhere.redistribute(mesh, like.placements))


def own_rows(tensor: DTensor) -> tuple[int, Tensor] | None:
    """This rank's rows of a DTensor: which of the whole's elements the first is, and their memory;
    None if it is sharded otherwise."""
    part = local(tensor)
    shape, mesh = tuple(tensor.shape), tensor.device_mesh
    sharding = [axis for axis, placed in enumerate(tensor.placements) if not placed.is_replicate()]
    if not sharding:
        return (0, part) if tuple(part.shape) == shape else None
    (axis, *others) = sharding
    placement: Any = tensor.placements[axis]
    # By its very class: there are shards that are cut otherwise.
    if others or type(placement).__name__ != "Shard" or placement.dim != 0 or not shape:
        return None
    # As torch.chunk cuts: parts of equal size, the last ones shorter or empty.
    rows = -(-shape[0] // mesh.size(axis))
    first = min(rows * mesh.get_local_rank(axis), shape[0])
    if tuple(part.shape) != (max(0, min(rows, shape[0] - first)), *shape[1:]):
        return None
    return first * math.prod(shape[1:]), part


def settle(model: nn.Module) -> None:
    """Have FSDP2 give up gathered parameters: after an evaluation the root keeps them, and would
    compute with them on although their shards have changed. Nothing for other models."""
    names = ("torch.distributed.fsdp", "torch.distributed._composable.fsdp")
    kinds = [getattr(sys.modules.get(name), "FSDPModule", None) for name in names]
    kind = next((kind for kind in kinds if kind is not None), None)
    if kind is None:
        return
    for module in model.modules():
        if isinstance(module, kind):
            module.reshard()


def rank() -> int:
    """This process's rank; 0 where nothing is distributed."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return 0
