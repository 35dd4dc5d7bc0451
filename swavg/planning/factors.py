"""The factors of low-rank adapters: which tensors make a product, and what scales it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from swavg.errors import MismatchError
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.tensors import Tensor
from swavg.planning.adapters import Settings, check_readable, settings_of
from swavg.planning.findings import MERGE
from swavg.planning.not_plain import LORA, NOT_LORA, partner


@dataclass(frozen=True, slots=True)
class Pair:
    """The factors of a module, by their names: ``alpha`` and ``bias`` may be empty. What they do is
    ``scale`` times their product."""

    module: str
    down: Tensor
    up: Tensor
    alpha: str
    bias: str
    scale: float

    @property
    def rank(self) -> int:
        return self.down.spec.shape[0]


class Adapter(NamedTuple):
    """A checkpoint that holds an adapter, with its settings."""

    checkpoint: Checkpoint
    settings: tuple[Settings, ...]
    pairs: dict[str, Pair]
    """By the name of the first factor."""
    unscaled: bool
    """Nothing says what PEFT's products are scaled by."""


def adapter_of(checkpoint: Checkpoint, shown: str) -> Adapter:
    """The adapter in a checkpoint, which is called ``shown``. MismatchError unless it is plain
    LoRA, InputError where its settings cannot be read."""
    settings = settings_of(checkpoint)
    names = checkpoint.tensors.index
    pairs: dict[str, Pair] = {}
    rest: list[str] = []
    try:
        for each in settings:
            each.check_plain()
        for name in names:
            own = next((pair for pair in LORA if name.rfind(pair[0]) > name.rfind(pair[1])), None)
            if own is not None:
                pairs[name] = _pair(checkpoint, name, own, settings)
            elif any(up in name for _, up in LORA) or any(text in name for text in NOT_LORA):
                rest.append(name)
        known = {each for pair in pairs.values() for each in (pair.up.spec.name, pair.bias)}
        for name in rest:
            if name not in known:
                raise ValueError(f"'{name}' is no factor of a plain product")
    except ValueError as problem:
        raise MismatchError(
            f"{shown}: {problem}: lora=exact is for plain LoRA.", hint=MERGE
        ) from None
    if not pairs:
        raise MismatchError(f"{shown} has no low-rank factors, which lora=exact is for.")
    check_readable(checkpoint, settings)
    peft = any(name.rpartition("lora_")[2].startswith(("A", "embedding_A")) for name in pairs)
    unscaled = peft and not settings and not any(pair.alpha for pair in pairs.values())
    return Adapter(checkpoint, settings, pairs, unscaled)


def _pair(
    checkpoint: Checkpoint, name: str, own: tuple[str, str], settings: Sequence[Settings]
) -> Pair:
    """The factors that begin with the tensor ``name``. ValueError if they are none."""
    tensors, (down, up) = checkpoint.tensors, own
    other = partner(name, down, up)
    if other not in tensors:
        raise ValueError(f"'{name}' has no other factor")
    first, second = tensors[name], tensors[other]
    shape, wide = first.spec.shape, second.spec.shape
    if len(shape) < 2 or len(wide) < 2 or wide[1] != shape[0] or not shape[0]:
        raise ValueError(f"'{name}' and '{other}' are {list(shape)} and {list(wide)}")
    if (first.grid, second.grid) != (shape, wide):
        raise ValueError(f"'{name}' lies in pieces")
    if not (first.spec.dtype.kind == second.spec.dtype.kind == "float"):
        raise ValueError(f"'{name}' is {first.spec.dtype}")
    stem = name[: name.rindex(down)]
    bias = other.removesuffix("weight") + "bias"
    alpha = next((each for each in (f"{stem}alpha", f"{stem}lora.alpha") if each in tensors), "")
    module, rank = stem.rstrip("."), shape[0]
    scale = 1.0
    if alpha:
        scale = _number(checkpoint, alpha) / rank
    else:
        of = next((each for each in settings if module.startswith(each.prefix)), None)
        scale = 1.0 if of is None else of.scale(module, rank)
    return Pair(module, first, second, alpha, bias if bias in tensors else "", scale)


def _number(checkpoint: Checkpoint, name: str) -> float:
    tensor = checkpoint[name]
    if math.prod(tensor.shape) != 1 or tensor.dtype.bits < 8:
        raise ValueError(f"'{name}' is {tensor.dtype} {list(tensor.shape)}")
    value = float(tensor[...].astype("f8").item())
    if not math.isfinite(value):
        raise ValueError(f"'{name}' is {value}")
    return value
