"""What is said of tensors that are no plain weights: how severe that is, and a way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "codes", "alpha", "rank", "factors", "rotations", "spectral", "mask", "binary", "empty",
    "hollow", "parts",
]  # fmt: skip
Level = Literal["refuse", "warn"]

OF_FACTORS: Sequence[Kind] = ("alpha", "rank", "factors")
"""Kinds that are of low-rank factors alone."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is no plain weight."""

    kind: Kind
    level: Level
    message: str
    hint: str
    whole: tuple[str, ...] = ()
    """Canonical names: it does not matter where these are equal in all checkpoints,"""
    begun: tuple[str, ...] = ()
    """and so are the first bytes of these."""


MERGE = "Merge each into its model first, and average the models."
EXACT = (
    "lora=exact writes the average of what they do; or merge each into its model first, and average"
    " the models."
)
"""The hint for plain LoRA."""

UNMASK = (
    "Make the pruning permanent first (torch.nn.utils.prune.remove), and prune the average; or take"
    " the last input's masks with exclude='*mask'."
)

SAID: Mapping[Kind, tuple[Level, str, str]] = {
    "codes": (
        "refuse",
        "quantised weights cannot be averaged: {} holds codes, whose scales are another tensor",
        "Average the original checkpoints, or dequantised ones, and quantise the average.",
    ),
    "alpha": ("refuse", "low-rank factors are scaled by alpha, which differs: {}", MERGE),
    "rank": ("refuse", "low-rank factors are of different ranks: {}", MERGE),
    "factors": (
        "warn",
        "the mean of low-rank factors (LoRA) is not the mean of their products: {}",
        MERGE,
    ),
    "rotations": (
        "warn",
        "the mean of what makes rotations (OFT, BOFT, HRA) is not the mean of these: {}",
        MERGE,
    ),
    "spectral": (
        "warn",
        "vectors of spectral norm are not averaged but the last input's: {}",
        "One forward pass of the average in training mode sets them right.",
    ),
    "mask": (
        "refuse",
        "pruning masks differ, and their average is no mask: {}",
        UNMASK,
    ),
    "binary": (
        "refuse",
        "masks of zeros and ones differ, and their average is no mask: {}",
        "Prune the average instead; or take the last input's masks with exclude='*mask*'.",
    ),
    "empty": (
        "refuse",
        "weights are empty, as ZeRO-3 leaves them in a model that is spread over ranks: {}",
        "Give the folder with the files of all ranks (global_stepN), whose masters are whole.",
    ),
    "hollow": (
        "warn",
        "tensors are empty, though others say that they have elements: {}",
        "A model that is spread over ranks must be gathered before it is saved.",
    ),
}
"""Level, message and hint of a kind; ``{}`` stands for the tensors."""


def finding_of(
    kind: Kind, names: Sequence[str], *, whole: Sequence[str] = (), begun: Sequence[str] = ()
) -> Finding:
    """The finding of tensors of these canonical names; ``whole`` and ``begun`` are its own."""
    level, message, hint = SAID[kind]
    more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
    message = message.format(f"'{names[0]}'{more}")
    return Finding(kind, level, message, hint, tuple(whole), tuple(begun))
