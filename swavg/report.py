"""What was done, or will be: plain values that can be shown or turned into JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from swavg.formats.base import Checkpoint

STDOUT = "-"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: bytes read so far and in all, seconds since it began."""

    read: int
    total: int
    seconds: float


@dataclass(frozen=True, slots=True)
class InputSummary:
    """An input as a report shows it: ``dtypes`` are elements per dtype, ``size`` bytes on disk.

    After a run ``distance`` is ||input - average|| / ||average|| and ``cosine`` that of the angle
    between the two, estimated from a sample (see :mod:`swavg.geometry`)."""

    name: str
    path: str
    weight: float
    size: int
    format: str
    tensors: int
    dtypes: Mapping[str, int]
    distance: float | None = None
    cosine: float | None = None


@dataclass(frozen=True)
class Report:
    """What was (or, before a run, will be) done.

    ``tensors`` counts what became of them; ``treated`` lists those that were not averaged over all
    inputs, with the reason. ``warnings`` name inputs that look wrong; ``running_statistics`` are
    batch-norm buffers that were averaged like weights. ``read`` and ``written`` are bytes;
    ``memory`` is the bound on buffers in bytes, ``threads`` the number of workers; ``seconds`` is
    None before a run.
    """

    output: str
    format: str
    inputs: tuple[InputSummary, ...]
    tensors: Mapping[str, int]
    elements: int
    read: int
    written: int
    files: int
    memory: int
    threads: int
    device: str
    treated: tuple[Mapping[str, str], ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()
    differing_integers: tuple[str, ...] = ()
    nonfinite: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    running_statistics: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``."""
        return asdict(self)


def summary_of(
    checkpoint: Checkpoint,
    name: str,
    weight: float,
    distance: float | None = None,
    cosine: float | None = None,
) -> InputSummary:
    """The facts of an input."""
    dtypes: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        dtype = tensor.spec.dtype.name
        dtypes[dtype] = dtypes.get(dtype, 0) + math.prod(tensor.spec.shape)
    ordered = dict(sorted(dtypes.items(), key=lambda item: -item[1]))
    return InputSummary(
        name,
        checkpoint.path,
        weight,
        checkpoint.size,
        checkpoint.format,
        len(checkpoint),
        ordered,
        distance,
        cosine,
    )
