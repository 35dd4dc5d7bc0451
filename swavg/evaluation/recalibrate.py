"""``swavg bn``: an averaged checkpoint with its batch-norm statistics recomputed, nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from swavg import __version__
from swavg.engine.average import execute
from swavg.engine.outputs import check
from swavg.engine.recipe import recorded_in, short_names
from swavg.engine.resources import Resources
from swavg.evaluation.copy_with import copy_with, in_memory
from swavg.evaluation.fresh_statistics import FreshStatistics, OnBatch, fresh_statistics
from swavg.evaluation.statistics_shift import StatisticsShift, statistics_shift
from swavg.formats import open_checkpoint
from swavg.formats.checkpoint import Checkpoint
from swavg.planning.policy import Policy
from swavg.planning.rename import renamed_with_model, rules
from swavg.planning.targets import default_path, default_suffix

Path = str | os.PathLike[str]


@dataclass(frozen=True)
class Recalibration:
    """What :func:`recalibrate` did.

    ``running_statistics`` are the tensors of the checkpoint that were replaced, of ``layers``
    batch-norm layers; ``batches`` and ``examples`` (None if a batch does not tell) are what they
    were computed on. ``moved`` says how far they moved. ``written`` are bytes.
    """

    output: str
    format: str
    input: str
    layers: int
    running_statistics: tuple[str, ...]
    batches: int
    examples: int | None
    moved: StatisticsShift
    written: int
    seconds: float
    notes: tuple[str, ...]
    recipe: Mapping[str, object]


def recalibrate(
    averaged: Path,
    model: nn.Module,
    batches: Iterable[Any],
    *,
    output: Path | None = "",
    limit: int | None = None,
    device: str = "cpu",
    key: str | None = None,
    strip_prefix: Sequence[str] = (),
    force: bool = False,
    on_batch: OnBatch | None = None,
    on_publish: Callable[[], object] = lambda: None,
) -> Recalibration:
    """Write ``averaged`` with the running statistics that its weights have on ``batches``.

    The weights are put into ``model``, which is left with them, on ``device``, with the new
    statistics. At most ``limit`` batches are taken, each as
    :func:`swavg.training.batches.forward` understands it; means and variances are cumulative
    averages over them (:func:`swavg.training.update_bn`). All but the statistics is copied as
    bytes, and they keep their dtypes. ``output`` is a path, None for standard output, or empty for
    the default: ``averaged`` with ``-bn`` behind its stem. ``key`` is the dotted path of the state
    dict in a PyTorch file; names lose a ``strip_prefix`` that they begin with, in the output
    too. ``on_batch`` is called after each batch with the number done and in
    all (None: unknown), ``on_publish`` before the output gets its name: from then on there is no
    way back. Raises a SwavgError; the destination is then as it was.
    """
    begun = time.monotonic()
    checkpoint = _opened(averaged, key, strip_prefix)
    path = _checked_output(checkpoint, output, force)
    found = fresh_statistics(model, checkpoint, batches, limit, device, on_batch, strip_prefix)
    values = _recipe(checkpoint, found)
    fresh = in_memory(found.tensors, checkpoint)
    plan = copy_with(checkpoint, fresh, path, values, name=_name(checkpoint), force=force)
    (report,) = execute(plan, Resources(threads=1), on_publish=on_publish)
    return Recalibration(
        report.output,
        report.format,
        checkpoint.path,
        found.layers,
        tuple(found.tensors),
        found.batches,
        found.examples,
        statistics_shift(checkpoint, fresh),
        report.written,
        time.monotonic() - begun,
        (*checkpoint.notes, *found.notes, *report.notes, *report.warnings),
        values,
    )


def check_output(
    averaged: Path,
    output: Path | None = "",
    *,
    key: str | None = None,
    strip_prefix: Sequence[str] = (),
    force: bool = False,
) -> None:
    """Raise what :func:`recalibrate` would for these arguments before the model runs: InputError,
    or OutputError if the output exists, is the input, or has no room."""
    _checked_output(_opened(averaged, key, strip_prefix), output, force)


def _opened(averaged: Path, key: str | None, strip_prefix: Sequence[str]) -> Checkpoint:
    # It may be the model alone whose names have the prefix.
    opened = [open_checkpoint(averaged, key=key)]
    return renamed_with_model((), opened, rules(strip_prefix), must=False)[1][0]


def _checked_output(checkpoint: Checkpoint, output: Path | None, force: bool) -> str | None:
    name = _name(checkpoint)
    path = None
    if output is not None:
        beside = os.path.join(os.path.dirname(checkpoint.path.rstrip("/")), name)
        path = os.fspath(output) or default_path(beside, checkpoint, Policy())
    nothing = in_memory({}, checkpoint)
    check(copy_with(checkpoint, nothing, path, {}, name=name, force=force))
    return path


def _name(checkpoint: Checkpoint) -> str:
    """``averaged-bn`` for ``run/averaged.pt``."""
    path = checkpoint.path.rstrip("/") or checkpoint.path
    suffix = default_suffix(path, checkpoint.format, Policy())
    return f"{os.path.basename(path).removesuffix(suffix)}-bn"


def _recipe(checkpoint: Checkpoint, found: FreshStatistics) -> dict[str, object]:
    """The checkpoint's own recipe, with what was done to it."""
    own = recorded_in(checkpoint) or {
        "method": "copy",
        "inputs": list(short_names([checkpoint.path])),
        "weights": [1.0],
        "options": {},
        "version": __version__,
    }
    done = {"layers": found.layers, "batches": found.batches, "examples": found.examples}
    return {**own, "batch_norm": done}
