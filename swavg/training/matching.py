"""The tensors of a model and those of checkpoints, side by side, before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from swavg.dtypes import BY_NAME, DType
from swavg.errors import Difference, MismatchError, RequestError
from swavg.formats import base
from swavg.matching import by_canonical_name, canonical
from swavg.training.wrapped import check_shape

_NAMED = 20


@dataclass(frozen=True, slots=True)
class Match:
    """A tensor of a model, by name, and what it is made of: one tensor of each checkpoint."""

    name: str
    sources: tuple[base.Tensor, ...]


def match(
    tensors: Mapping[str, Tensor],
    checkpoints: Sequence[base.Checkpoint],
    shown: Sequence[str],
    strict: bool,
) -> tuple[list[Match], tuple[str, ...]]:
    """What each tensor of a model is made of, and the names of those that cannot be made.

    A tied tensor is matched once, by any of its names. Raises MismatchError if ``strict`` and a
    checkpoint lacks one, or has it in another shape or of another kind; and if none can be made.
    Raises RequestError for a tensor without shape, or without memory of its own.
    """
    groups: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        _check(name, tensor)
        groups.setdefault(id(tensor), []).append(name)
    mappings = [by_canonical_name(list(each.tensors)) for each in checkpoints]
    matches: list[Match] = []
    differences: list[Difference] = []
    kept: list[str] = []
    for names in groups.values():
        found = [
            _find(names, checkpoint, mapping)
            for checkpoint, mapping in zip(checkpoints, mappings, strict=True)
        ]
        difference = _difference(names[0], tensors[names[0]], found, shown)
        if difference is None:
            sources = tuple(source for source in found if source is not None)
            matches.append(Match(names[0], sources))
        else:
            differences.append(difference)
            kept += names
    if differences and (strict or not matches):
        raise _mismatch(differences, len(groups))
    order = {name: place for place, name in enumerate(tensors)}
    return matches, tuple(sorted(kept, key=order.__getitem__))


def _check(name: str, tensor: Tensor) -> None:
    check_shape(name, tensor)
    if tensor.is_meta:
        raise RequestError(
            f"'{name}' is on the meta device, where nothing can be put.",
            hint="Give the model memory first: model.to_empty(device='cpu').",
        )
    if any(
        size > 1 and step == 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True)
    ):
        raise RequestError(
            f"'{name}' is expanded: several of its elements share one place in memory.",
            hint="Give it memory of its own, with contiguous(), or leave out buffers.",
        )


def model_dtype(tensor: Tensor) -> DType | None:
    """The dtype of a model's tensor; None for one that no checkpoint holds as such."""
    return BY_NAME.get(str(tensor.dtype).removeprefix("torch."))


def _find(
    names: Sequence[str], checkpoint: base.Checkpoint, mapping: Mapping[str, str]
) -> base.Tensor | None:
    # The last of its names, which is the one that load_state_dict would leave in place.
    for name in reversed(names):
        for spelled in (name, canonical(name)):
            if spelled in mapping:
                return checkpoint.tensors[mapping[spelled]]
    return None


def _difference(
    name: str, tensor: Tensor, found: Sequence[base.Tensor | None], shown: Sequence[str]
) -> Difference | None:
    """What keeps ``tensor`` from being made of what was ``found``, or None."""

    def facts(own: str, others: Sequence[str]) -> tuple[tuple[str, str], ...]:
        return (("the model", own), *zip(shown, others, strict=True))

    present = [source.spec for source in found if source is not None]
    if len(present) < len(found):
        others = ["missing" if source is None else "present" for source in found]
        return Difference(name, "missing", facts("present", others))
    shape = tuple(tensor.shape)
    if any(spec.shape != shape for spec in present):
        return Difference(
            name, "shape", facts(str(list(shape)), [str(list(spec.shape)) for spec in present])
        )
    dtype = model_dtype(tensor)
    if dtype is None or any(_group(spec.dtype) != _group(dtype) for spec in present):
        own = str(tensor.dtype).removeprefix("torch.")
        return Difference(name, "dtype", facts(own, [spec.dtype.name for spec in present]))
    return None


def _group(dtype: DType) -> str:
    return "integer" if dtype.kind == "bool" else dtype.kind


def _mismatch(differences: Sequence[Difference], count: int) -> MismatchError:
    listed = [_said(difference) for difference in differences[:_NAMED]]
    if len(differences) > _NAMED:
        listed.append(f"and {len(differences) - _NAMED} more")
    return MismatchError(
        f"{len(differences)} of the model's {count} tensors cannot be made of the checkpoints: "
        + "; ".join(listed)
        + ".",
        differences=differences,
        hint="With strict=False they keep the model's own values."
        if len(differences) < count
        else "Are they of this model? For a .pt file, key= chooses the state dict.",
    )


def _said(difference: Difference) -> str:
    (_, own), *others = difference.facts
    odd = [(source, fact) for source, fact in others if fact != own]
    source, fact = odd[0]
    more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
    if difference.what == "missing":
        return f"'{difference.name}' is missing in {source}{more}"
    return f"'{difference.name}' is {own} in the model, {fact} in {source}{more}"
