"""One output of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Row:
    """One output: weights over inputs."""

    weights: tuple[float, ...]
    members: tuple[int, ...]
    """Strictly ascending indices of the inputs that the weights belong to."""
    method: str | None = None
    """Recorded with the output; None: mean or weighted."""
    details: Mapping[str, object] = field(default_factory=dict)
    """Decay, step, ...: recorded, too."""
