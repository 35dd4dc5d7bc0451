"""A folder of snapshots: every N steps one, of which the last K and the best M stay."""

from __future__ import annotations

import json
import math
import os
import re
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from swavg.errors import InputError, OutputError, OutputExistsError, RequestError
from swavg.formats import open_checkpoint
from swavg.series import guess_mode
from swavg.series.inside import read_inside
from swavg.storage.destination import check_local
from swavg.storage.temporary import TEMPORARY
from swavg.training.snapshot import save_snapshot
from swavg.training.wrapped import rank
from swavg.weights.checks import check_count

_SUFFIX = ".safetensors"
_MARK = "snapshots"
_STALE = 3600
"""Seconds after which a file that is not finished is nobody's any more."""


@dataclass(frozen=True, slots=True)
class _Kept:
    step: int
    path: Path
    value: float | None


class Snapshots:
    """Saves a snapshot every ``every`` steps into ``folder``, and deletes those that are neither
    among the last ``keep`` nor the best ``best``.

    Without ``keep`` and ``best`` all stay; with ``best`` alone, only the best. The best are those
    with the lowest or highest ``metric``, by its name or as ``mode`` (``min`` or ``max``) says; of
    equals the earlier. A snapshot without the metric, or where it is NaN or infinite, is never
    among them; while there is no best one, the newest stays. ``name`` has the step in it:
    ``step-{step}`` or ``run-{step:08d}``.

    A snapshot is deleted only when the newer one is safely on the disk. Only files of this name
    pattern that ``Snapshots`` itself wrote are ever deleted or replaced: those of an earlier
    process, too, which are found in the folder. After training went back to an earlier step, the
    last are those that were written last.

    ``swavg average FOLDER --last 5`` averages the newest, ``--best 3 --metric NAME`` the best.
    In a distributed run every rank calls :meth:`save`, and rank 0 writes and deletes.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: int = 1,
        keep: int | None = None,
        best: int | None = None,
        metric: str | None = None,
        mode: str | None = None,
        name: str = "step-{step}",
    ) -> None:
        _check(every, keep, best, metric, mode)
        check_local(folder)
        self.folder = Path(folder)
        self.every = every
        self._keep = 0 if keep is None and best is not None else keep
        self._best = 0 if best is None else best
        self._metric = metric
        self._sign = -1 if (mode or guess_mode(metric or "")) == "max" else 1
        self._warned = False
        self._name = name
        self._pattern = _pattern(name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            paths = list(self.folder.iterdir())
        except OSError as error:
            raise OutputError(self.folder, f"is no folder to write to: {error.strerror}") from None
        # As they were written: a run that went back and died again has left later steps behind.
        found = [(self._own(path), _written(path)) for path in paths]
        kept = [(written, each.step, each) for each, written in found if each is not None]
        self._kept = [each for *_, each in sorted(kept, key=lambda entry: entry[:2])]
        self._clear(paths)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The snapshots that there are, oldest first."""
        return tuple(each.path for each in self._kept)

    @property
    def best_paths(self) -> tuple[Path, ...]:
        """The best snapshots, best first."""
        return tuple(each.path for each in self._ranked()[: self._best])

    def save(
        self,
        model: nn.Module | Mapping[str, Tensor],
        step: int,
        metrics: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Path | None:
        """Save the model if ``step`` is a multiple of ``every``; the path, or None.

        ``more`` are arguments of :func:`save_snapshot`: ``epoch``, ``recipe``, ``metadata``. The
        path may be gone already if the snapshot is none to keep. Raises as that does; then
        nothing was deleted.
        """
        check_count("step", step, 0)
        step = int(step)
        if step % self.every != 0:
            return None
        path = self.folder / f"{self._name.format(step=step)}{_SUFFIX}"
        metadata = dict(more.pop("metadata", None) or {})
        # An average that is made of snapshots takes over their metadata, but not their recipe.
        recipe = more.pop("recipe", None)
        if recipe is None:
            metadata[_MARK] = self._name
        else:
            recipe = {**recipe, _MARK: self._name}
        # What an interrupted run wrote at this step makes way; what is not ours does not.
        force = rank() == 0 and self._own(path) is not None
        if rank() == 0 and not force and os.path.lexists(path):
            raise OutputExistsError(
                path,
                "exists already, and was not written by Snapshots",
                hint="Move it away, or choose another name=.",
            )
        save_snapshot(
            path,
            model,
            step=step,
            metrics=metrics,
            recipe=recipe,
            metadata=metadata,
            force=force,
            **more,
        )
        value = None if metrics is None or self._metric is None else metrics.get(self._metric)
        kept = _Kept(step, path, None if value is None else float(value))
        self._kept = [each for each in self._kept if each.path != path] + [kept]
        before = len(self._kept)
        self._prune()
        if self._best and len(self._kept) < before:
            self._warn_of_no_metric(step, metrics or {})
        return path

    def _warn_of_no_metric(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Warn, once, that none of the snapshots has what the best are chosen by."""
        if self._warned or any(each.value is not None for each in self._kept):
            return
        self._warned = True
        warnings.warn(
            f"No '{self._metric}' among the metrics at step {step} (there are:"
            f" {', '.join(metrics) or 'none'}): such a snapshot is never a best one, and is deleted"
            " unless it is one of the last that keep= says.",
            stacklevel=3,
        )

    def _clear(self, paths: Iterable[Path]) -> None:
        """Remove what killed processes were writing: snapshots nobody has written to for long."""
        for path in paths:
            if not (path.name.startswith(".") and path.name.endswith(TEMPORARY)):
                continue
            finished = path.name[1:].removesuffix(TEMPORARY).rpartition(".")[0]
            stale = time.time_ns() - _written(path) > _STALE * 10**9
            if stale and rank() == 0 and self._pattern.fullmatch(finished):
                _delete(path)

    def _prune(self) -> None:
        if self._keep is None:
            return
        best = self._ranked()[: self._best]
        first = len(self._kept) - (self._keep if best else max(self._keep, 1))
        staying = {each.path for each in [*self._kept[max(first, 0) :], *best]}
        for each in self._kept:
            # Looked at again: someone may have put something else in its place.
            if each.path not in staying and rank() == 0 and self._own(each.path) is not None:
                _delete(each.path)
        self._kept = [each for each in self._kept if each.path in staying]

    def _ranked(self) -> list[_Kept]:
        comparable = [
            (self._sign * each.value, each)
            for each in self._kept
            if each.value is not None and math.isfinite(each.value)
        ]
        return [each for _, each in sorted(comparable, key=lambda pair: pair[0])]

    def _own(self, path: Path) -> _Kept | None:
        """The snapshot at ``path`` if it is one that this class wrote; else None."""
        match = self._pattern.fullmatch(path.name)
        if match is None or path.name != f"{self._name.format(step=int(match[1]))}{_SUFFIX}":
            return None
        try:
            metadata = open_checkpoint(str(path)).metadata
            inside = read_inside(str(path))
        except InputError:
            return None
        step = int(match[1])
        if _mark(metadata) != self._name or inside.counts.get("step") != step:
            return None
        return _Kept(step, path, inside.metrics.get(self._metric or ""))


def _written(path: Path) -> int:
    """When a file was last written to, in nanoseconds; now if it has gone (others delete, too)."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return time.time_ns()


def _mark(metadata: Mapping[str, str]) -> object:
    if "swavg" not in metadata:
        return metadata.get(_MARK)
    try:
        return json.loads(metadata["swavg"])[_MARK]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _delete(path: Path) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise OutputError(path, f"cannot be deleted: {error.strerror}") from None


def _check(
    every: int, keep: int | None, best: int | None, metric: str | None, mode: str | None
) -> None:
    for name, count, least in (("every", every, 1), ("keep", keep, 0), ("best", best, 0)):
        if count is not None:
            check_count(name, count, least)
    if not keep and not best and (keep, best) != (None, None):
        raise RequestError("No snapshot would stay: keep and best are both 0.")
    if mode not in (None, "min", "max"):
        raise RequestError(f"mode is {mode!r}; it can be min or max.")
    if best and metric is None:
        raise RequestError("The best by which metric?", hint="Name it: metric='val_loss'.")
    if best and mode is None and guess_mode(metric or "") is None:
        raise RequestError(
            f"Is lower or higher {metric} better? Its name does not say.",
            hint="Give mode='min' or mode='max'.",
        )


def _pattern(name: str) -> re.Pattern[str]:
    """What file names of ``name`` look like, with the step as the first group."""
    # Only digits: as 1,000 or 3e8 a step could not be read back, and no snapshot would be deleted.
    parts = re.fullmatch(r"([^{}]*)\{step(?::d|:0\d{1,2}d?)?\}([^{}]*)", name)
    if parts is None or os.sep in name or name.startswith("."):
        raise RequestError(
            f"'{name}' is no name of snapshots.",
            hint="Write it like step-{step} or run-{step:08d}.",
        )
    return re.compile(f"{re.escape(parts[1])}(\\d+){re.escape(parts[2] + _SUFFIX)}", re.ASCII)
