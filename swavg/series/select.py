"""Choosing from a series: by position, step, spacing or metric."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from swavg.errors import RequestError
from swavg.series.metrics import with_inner_metrics
from swavg.series.model import Series, Snapshot, finite, labels

Mode = Literal["min", "max"]

_LOWER = ("loss", "ppl", "perplexity", "error", "err", "wer", "cer", "ter", "eer", "nll", "mae",
          "mse", "rmse", "fid", "bpc", "bpb")  # fmt: skip
_HIGHER = ("acc", "accuracy", "top1", "top5", "bleu", "chrf", "rouge", "rougel", "f1", "auc",
           "auroc", "map", "miou", "iou", "dice", "psnr", "ssim", "precision", "recall", "reward",
           "mrr", "ndcg", "em", "score")  # fmt: skip


def guess_mode(metric: str) -> Mode | None:
    """Whether lower or higher is better, going by the words of a metric's name; None if they do
    not say, or say both."""
    words = set(re.split(r"[^a-z0-9]+", metric.lower()))
    lower = any(name in words for name in _LOWER) or metric.lower().endswith("loss")
    higher = any(name in words for name in _HIGHER)
    if lower == higher:
        return None
    return "min" if lower else "max"


def select(
    series: Series,
    *,
    last: int | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
    every: int | None = None,
    best: int | None = None,
    metric: str | None = None,
    mode: str | None = None,
    at_most: bool = False,
) -> Series:
    """The chosen snapshots in the order of the series: bounds first, then spacing, then count.

    ``from_step`` and ``to_step`` are inclusive. ``every`` keeps the newest, and then each that is
    at least so many steps older than the one kept before (LAWA). ``last`` takes the newest,
    ``best`` those with the lowest or highest ``metric`` (``mode`` min or max; by its name where
    that says which); checkpoints are opened for a metric that some lack. RequestError if there are
    fewer than asked for, unless ``at_most``, or if nothing is left.
    """
    _check(last, best, every, from_step, to_step, metric, mode)
    chosen = list(series.snapshots)
    notes = list(series.notes)
    bounded = from_step is not None or to_step is not None
    stepped = [snapshot for snapshot in chosen if snapshot.step is not None]
    if (bounded or every is not None) and not stepped:
        raise RequestError("Choosing by step needs steps, and none of the checkpoints has one.")
    by_step = bounded or every is not None or last is not None
    if by_step and 0 < len(stepped) < len(chosen):
        lacking = [snapshot.path for snapshot in chosen if snapshot.step is None]
        notes.append(f"left out for want of a {series.unit}: {labels(lacking)}")
        chosen = stepped
    if bounded:
        chosen = _between(series, chosen, from_step, to_step)
    if every is not None:
        chosen = _spaced(chosen, every)
    if last is not None:
        _require(last, chosen, at_most, "the last")
        chosen = _those_in(chosen, _newest_first(chosen)[:last])
    if best is not None:
        chosen, more = _best(replace(series, snapshots=tuple(chosen)), best, metric, mode, at_most)
        notes += more
    return Series(tuple(chosen), tuple(notes), series.unit)


def _check(
    last: int | None,
    best: int | None,
    every: int | None,
    from_step: int | None,
    to_step: int | None,
    metric: str | None,
    mode: str | None,
) -> None:
    for name, count in (("last", last), ("best", best), ("every", every)):
        if count is not None and count < 1:
            raise RequestError(f"--{name} must be at least 1, not {count}.")
    if last is not None and best is not None:
        raise RequestError(
            "--last and --best exclude each other", hint="Bound the best with --from-step."
        )
    if best is None and mode is not None:
        raise RequestError("--mode says what is best", hint="Add --best K.")
    if mode not in (None, "min", "max"):
        raise RequestError(f"mode is 'min' or 'max', not '{mode}'.")
    if from_step is not None and to_step is not None and from_step > to_step:
        raise RequestError(f"--from-step {from_step} is behind --to-step {to_step}.")


def _require(asked: int, found: Sequence[Snapshot], at_most: bool, what: str) -> None:
    if len(found) < asked and not at_most:
        raise RequestError(
            f"Asked for {what} {asked} checkpoints and found {len(found)}"
            + (f": {labels([snapshot.path for snapshot in found])}" if found else ""),
            hint="Take what there is with --at-most." if found else None,
        )
    if not found:
        raise RequestError(f"Asked for {what} {asked} checkpoints and found none.")


def _between(
    series: Series, snapshots: Sequence[Snapshot], low: int | None, high: int | None
) -> list[Snapshot]:
    steps = [snapshot.step for snapshot in snapshots if snapshot.step is not None]
    found = [
        snapshot
        for snapshot in snapshots
        if snapshot.step is not None
        and (low is None or snapshot.step >= low)
        and (high is None or snapshot.step <= high)
    ]
    if not found:
        bounds = " ".join(
            f"{word} {bound}" for word, bound in (("from", low), ("to", high)) if bound is not None
        )
        raise RequestError(
            f"No checkpoint has a {series.unit} {bounds}: they are {min(steps)} to {max(steps)}."
        )
    return found


def _newest_first(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """By step; of equal steps, and where none are known, the later in the series first."""
    backwards = list(reversed(snapshots))
    if all(snapshot.step is not None for snapshot in snapshots):
        backwards.sort(key=lambda snapshot: -(snapshot.step or 0))
    return backwards


def _those_in(snapshots: Sequence[Snapshot], picked: Sequence[Snapshot]) -> list[Snapshot]:
    """``picked`` in the order of ``snapshots``: by identity, as a path may be given twice."""
    identities = {id(snapshot) for snapshot in picked}
    return [snapshot for snapshot in snapshots if id(snapshot) in identities]


def _spaced(snapshots: Sequence[Snapshot], every: int) -> list[Snapshot]:
    kept: list[Snapshot] = []
    for snapshot in _newest_first(snapshots):
        assert snapshot.step is not None
        if not kept or (kept[-1].step or 0) - snapshot.step >= every:
            kept.append(snapshot)
    return _those_in(snapshots, kept)


def _best(
    series: Series, count: int, metric: str | None, mode: str | None, at_most: bool
) -> tuple[list[Snapshot], list[str]]:
    notes = []
    if metric is None:
        known = series.metric_names or with_inner_metrics(series).metric_names
        if len(known) != 1:
            raise RequestError(
                f"--best needs --metric: there are {', '.join(known)}"
                if known
                else "--best needs a metric, and none is known for these checkpoints",
                hint=None if known else "Give a file of metrics with --metrics.",
            )
        metric = known[0]
        notes.append(f"best by {metric}, the only metric there is")
    mode = mode or guess_mode(metric)
    if mode is None:
        raise RequestError(
            f"Is lower or higher {metric} better? Its name does not say",
            hint="Give --mode min or --mode max.",
        )
    if not all(metric in snapshot.metrics for snapshot in series.snapshots):
        series = with_inner_metrics(series, metric)
    comparable = [snapshot for snapshot in series.snapshots if finite(snapshot, metric)]
    lacking = [s.path for s in series.snapshots if metric not in s.metrics]
    strange = [s for s in series.snapshots if metric in s.metrics and not finite(s, metric)]
    if not comparable:
        names = ", ".join(series.metric_names)
        raise RequestError(
            f"No checkpoint has a {metric} to go by",
            hint=f"There are: {names}." if names else "Give a file of metrics with --metrics.",
        )
    if lacking:
        notes.append(f"left out for want of {metric}: {labels(lacking)}")
    if strange:
        shown = labels([snapshot.path for snapshot in strange])
        notes.append(f"left out, {metric} is NaN or infinite: {shown}")
    _require(count, comparable, at_most, f"the best (by {metric})")
    sign = 1 if mode == "min" else -1
    # Of equals the newer: it has trained longer.
    ranked = sorted(_newest_first(comparable), key=lambda s: sign * s.metrics[metric])[:count]
    return _those_in(comparable, ranked), notes
