"""What a series is: snapshots in order, and what was understood on the way."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from swavg.formats.tensors import Shared
from swavg.short_repr import ShortRepr
from swavg.storage.paths import absolute

Unit = Literal["step", "epoch", "number", "batch"]
"""What a snapshot's ``step`` counts: optimizer steps, epochs, or a bare number (``12.pt``). Batches
are those of an epoch."""

StepFrom = Literal["name", "file", "none"]

_LISTED = 4


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A checkpoint of a training run: a file, or a folder such as ``checkpoint-500``."""

    path: str
    step: int | None = None
    """In the unit of its series, None if unknown."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    step_from: StepFrom = "none"
    """Whether the step was read from the name or from the file."""
    counts: Mapping[Unit, int] = field(default_factory=dict)
    """All the counts that were found, by unit."""
    opened: bool = False
    """Whether the file was read, so that ``metrics`` has all that it says."""
    rivals: tuple[str, ...] = ()
    """Other files of the searched folder that are of the same step, and other bytes."""
    is_end: bool = False
    """It has no step, and is what its run left at its end, going by its name."""


@dataclass(frozen=True, slots=True, repr=False)
class Series(ShortRepr):
    """Snapshots in step order (or as given, where no step is known or the order was to be kept)."""

    snapshots: tuple[Snapshot, ...]
    notes: tuple[str, ...] = ()
    """What was understood, reordered and ignored."""
    unit: Unit | None = None
    """What the steps count, None if there are none."""
    shared: Shared = field(default_factory=Shared, repr=False, compare=False)
    """What was read of those that had to be opened: it need not be read again."""
    unmeasured: str | None = None
    """Why the file of metrics that was given has none for any of them."""

    def facts(self) -> Mapping[str, object]:
        return {
            "checkpoints": len(self),
            "paths": self.paths,
            "unit": self.unit,
            "steps": () if self.unit is None else self.steps,
            "metrics": self.metric_names,
            "notes": self.notes,
        }

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(snapshot.path for snapshot in self.snapshots)

    @property
    def steps(self) -> tuple[int | None, ...]:
        return tuple(snapshot.step for snapshot in self.snapshots)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """All metrics that any snapshot has, those that most have first."""
        counts: dict[str, int] = {}
        for snapshot in self.snapshots:
            for name in snapshot.metrics:
                counts[name] = counts.get(name, 0) + 1
        return tuple(sorted(counts, key=lambda name: -counts[name]))

    def __len__(self) -> int:
        return len(self.snapshots)


def finite(snapshot: Snapshot, metric: str) -> bool:
    """Whether the snapshot has the metric, as a number that can be compared."""
    value = snapshot.metrics.get(metric)
    return value is not None and math.isfinite(value)


_GENERIC = (
    "model", "pytorch_model", "adapter_model", "diffusion_pytorch_model", "consolidated",
    "open_clip_model", "weights", "checkpoint", "state_dict", "ckpt", "mp_rank_00_model_states",
    "model_optim_rng",
)  # fmt: skip


def is_generic(name: str) -> bool:
    """Whether a file is named for what it is, so that its folder is what tells it apart."""
    return name.partition(".")[0] in _GENERIC


def label(path: str) -> str:
    """How notes call a checkpoint: its name, with the folder's where that alone says nothing."""
    parent, name = os.path.split(absolute(path))
    return f"{os.path.basename(parent)}/{name}" if is_generic(name) else name


def labels(paths: Sequence[str], most: int = _LISTED) -> str:
    """The names of a few paths, and how many more there are."""
    names = [label(path) for path in paths]
    if len(set(names)) < len(set(paths)):
        names = list(paths)
    shown = names if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} more"]
    return ", ".join(shown)
