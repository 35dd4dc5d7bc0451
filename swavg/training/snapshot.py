"""Snapshots of a model as safetensors files that the command line reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from swavg.dtypes import BY_NAME, DType
from swavg.errors import OutputError, RequestError
from swavg.formats.layout import FileLayout, Specs, distinct
from swavg.formats.safetensors import plan_specs
from swavg.planning.match import unwrapped
from swavg.storage.destination import check_destination, is_stream
from swavg.storage.publish import new_file
from swavg.training.places import own_tensors
from swavg.training.snapshot_metadata import checked_text, header_strings
from swavg.training.wrapped import check_values, is_sharded, plain_state, rank

_EXTRA_STATE = "_extra_state"
_CHUNK = 16 << 20


def save_snapshot(
    path: str | os.PathLike[str],
    model: nn.Module | Mapping[str, Tensor],
    *,
    step: int | None = None,
    epoch: int | None = None,
    metrics: Mapping[str, object] | None = None,
    recipe: Mapping[str, object] | None = None,
    metadata: Mapping[str, str] | None = None,
    force: bool = False,
) -> Path:
    """Write a model's state dict as a safetensors file, which appears whole or not at all.

    ``model`` is a module (plain, compiled, in DDP, or sharded by FSDP2) or a mapping of names to
    tensors. Parameters and persistent buffers are written, as they are, without the names that
    wrappers add; a tied tensor under each of its names, so that the file loads strictly. Extra
    state that is no tensor (``get_extra_state``) is left out; there is never optimizer state.

    ``step`` (optimizer steps done), ``epoch`` and ``metrics`` (one number each) are recorded where
    ``swavg list``, ``--best`` and ``ema --per-step`` find them. ``recipe`` marks an average: how
    it was made, as ``swavg posthoc`` reads it. ``metadata`` are further strings.

    One tensor at a time is held in memory besides the model, at most. In a distributed run every
    rank calls this and rank 0 writes. If the state is sharded, each tensor is gathered for it, and
    a failure of rank 0 raises in all ranks; otherwise the ranks do not talk to each other, and
    the others return without waiting for the file.

    Raises OutputError if ``path`` exists and ``force`` is not set, or cannot be written, and
    RequestError for what no safetensors file holds.
    """
    if isinstance(path, (nn.Module, Mapping)):
        raise RequestError("The path comes first.", hint="It is save_snapshot(path, model).")
    target = Path(path)
    tensors = _tensors(model)
    strings = header_strings(step, epoch, metrics, recipe, metadata)
    layout = plan_specs(_specs(tensors), range(len(tensors)), strings)
    if not any(map(is_sharded, tensors.values())):
        if rank() == 0:
            _write(target, layout, tensors.__getitem__, force)
        return target
    _write_sharded(target, layout, tensors, force)
    return target


def _tensors(model: nn.Module | Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors to write, by plain name."""
    state: Mapping[str, object]
    # Where the values of an empty one are, parameters say themselves, not those of a state dict.
    own: dict[str, Tensor] = {}
    if isinstance(model, nn.Module):
        state, own = plain_state(model), own_tensors(model)
    elif isinstance(model, Mapping):
        state = model
    else:
        raise RequestError(
            f"A snapshot is of a module or a state dict, not of {type(model).__name__}."
        )
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            check_values(checked_text("A tensor's name", name), value)
            if value.numel() == 0:
                check_values(name, own.get(name, value))
            found[name] = value
        elif str(name).rpartition(".")[2] != _EXTRA_STATE:
            raise RequestError(
                f"'{name}' is {type(value).__name__}, and a safetensors file holds tensors only.",
                hint="Pass a mapping without it.",
            )
    if not found:
        raise RequestError("There is no tensor to save.")
    if isinstance(model, nn.Module):
        return found
    # A mapping may come from a wrapped model.
    plain = {unwrapped(name): tensor for name, tensor in found.items()}
    return plain if len(plain) == len(found) else found


def _specs(tensors: Mapping[str, Tensor]) -> Specs:
    # Each is asked for its dtype first: not every kind of tensor has a shape.
    own = ((_dtype(name, tensor), tuple(tensor.shape)) for name, tensor in tensors.items())
    return Specs(tuple(tensors), *distinct(own))


def _dtype(name: str, tensor: Tensor) -> DType:
    if tensor.is_nested:
        raise RequestError(
            f"'{name}' is a nested tensor.", hint="Pass a mapping without it, or with it converted."
        )
    spelled = str(tensor.dtype).removeprefix("torch.")
    found = BY_NAME.get(spelled)
    if found is None or found.safetensors is None or tensor.layout is not torch.strided:
        what = spelled if tensor.layout is torch.strided else f"sparse ({tensor.layout})"
        raise RequestError(
            f"'{name}' is {what}, which no safetensors file holds.",
            hint="Pass a mapping without it, or with it converted.",
        )
    return found


def _write(path: Path, layout: FileLayout, get: Callable[[str], Tensor], force: bool) -> None:
    try:
        check_destination(path, layout.size, force=force)
        with new_file(path, force=force) as file:
            for _, data in layout.fixed():
                file.write(data)
            for name in _names(layout):
                for part in _bytes_of(get(name)):
                    file.write(part)
            if not is_stream(path):
                layout.verify(file.path)
    except OutputError as error:
        # The name that it was given, not a temporary one.
        raise type(error)(path, error.problem, hint=error.hint) from None


def _names(layout: FileLayout) -> list[str]:
    """The names of the tensors in the order of the file: where they are gathered, all ranks do so
    in this one."""
    return [layout.specs.names[number] for number in layout.tensors]


def _bytes_of(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor in row-major order: views of it where it lies so in main memory."""
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().view(-1)
    step = flat.numel() if flat.device.type == "cpu" else _CHUNK // flat.element_size()
    for start in range(0, flat.numel(), max(1, step)):
        part: memoryview = flat[start : start + step].cpu().view(torch.uint8).numpy().data
        yield part


def _write_sharded(
    path: Path, layout: FileLayout, tensors: Mapping[str, Tensor], force: bool
) -> None:
    """All ranks gather tensor by tensor, rank 0 writes; every rank learns how it ended."""
    missing = _names(layout)

    def gather(name: str) -> Tensor:
        missing.remove(name)
        tensor = tensors[name]
        return tensor.full_tensor() if is_sharded(tensor) else tensor

    problem: Exception | None = None
    if rank() == 0:
        try:
            _write(path, layout, gather, force)
        except Exception as error:
            problem = error
    # The other ranks, and rank 0 for what it did not get to: they wait for it in each gather.
    for name in list(missing):
        gather(name)
    told = [None if problem is None else getattr(problem, "problem", str(problem))]
    if dist.is_initialized():
        dist.broadcast_object_list(told, src=0)
    if problem is not None:
        raise problem
    if told[0] is not None:
        raise OutputError(path, f"rank 0 could not write it: {told[0]}")
