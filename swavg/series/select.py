"""Choosing from a series: by position, step, spacing or metric."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from swavg.errors import RequestError, did_you_mean, with_article
from swavg.formats.metrics import HIGHER, LOWER
from swavg.series.families import members, pattern_for
from swavg.series.metrics import with_inner_metrics
from swavg.series.model import Series, Snapshot, finite, labels
from swavg.storage.paths import absolute
from swavg.weights import Mode

_TURNED = {"neg", "negative", "negated", "minus", "inverse", "inv"}


def guess_mode(metric: str) -> Mode | None:
    """Whether lower or higher is better, going by the words of a metric's name; None if they do
    not say, or say both, or turn it round (``neg_log_loss``)."""
    words = set(re.split(r"[^a-z0-9]+", metric.lower()))
    lower = any(name in words for name in LOWER) or metric.lower().endswith("loss")
    higher = any(name in words for name in HIGHER)
    if lower == higher or words & _TURNED:
        return None
    return "min" if lower else "max"


@dataclass(frozen=True, slots=True)
class Selection:
    """What to choose of a series: bounds first, then spacing, then count."""

    last: int | None = None
    """The newest so many."""
    from_step: int | None = None
    """From this step on, inclusive."""
    to_step: int | None = None
    """Up to this step, inclusive."""
    every: int | None = None
    """The newest, and then each that is at least so many steps older than the one kept before
    (LAWA)."""
    best: int | None = None
    """Those so many with the lowest or highest ``metric``."""
    metric: str | None = None
    """What ``best`` goes by; may be left out where there is one only."""
    mode: str | None = None
    """Whether ``min`` or ``max`` is best; by the metric's name where that says which."""
    at_most: bool = False
    """Take fewer than asked for if there are fewer."""

    def __post_init__(self) -> None:
        for name, count in (("last", self.last), ("best", self.best), ("every", self.every)):
            if count is not None and count < 1:
                raise RequestError(f"{name}={count} must be at least 1.")
        if self.last is not None and self.best is not None:
            raise RequestError(
                "last= and best= exclude each other", hint="Bound the best with from_step=."
            )
        if self.best is None and self.mode is not None:
            raise RequestError("mode= says what is best", hint="Add best=K.")
        if self.mode not in (None, "min", "max"):
            raise RequestError(f"mode is 'min' or 'max', not '{self.mode}'.")
        low, high = self.from_step, self.to_step
        if low is not None and high is not None and low > high:
            raise RequestError(f"from_step={low} is behind to_step={high}.")


def select(series: Series, selection: Selection) -> Series:
    """The chosen snapshots, in the order of the series.

    Checkpoints are opened for a metric that some lack. RequestError if there are fewer than asked
    for (unless ``at_most``), or if nothing is left.
    """
    low, high = selection.from_step, selection.to_step
    chosen = list(series.snapshots)
    notes = list(series.notes)
    needs_steps = (low, high, selection.every) != (None, None, None)
    stepped = [s for s in chosen if s.step is not None or (s.is_end and not needs_steps)]
    if needs_steps and not stepped:
        raise RequestError("Choosing by step needs steps, and none of the checkpoints has one.")
    if (needs_steps or selection.last is not None) and 0 < len(stepped) < len(chosen):
        lacking = [snapshot.path for snapshot in chosen if snapshot not in stepped]
        notes.append(f"left out for want of {with_article(str(series.unit))}: {labels(lacking)}")
        chosen = stepped
    if (low, high) != (None, None):
        chosen = _between(series, chosen, low, high)
    if selection.every is not None:
        chosen = _spaced(chosen, selection.every)
    if selection.last is not None:
        _require(selection.last, chosen, selection.at_most, "the last")
        chosen = _those_in(chosen, _newest_first(chosen)[: selection.last])
    if selection.best is not None:
        candidates = replace(series, snapshots=tuple(chosen))
        chosen, more = _best(candidates, selection.best, selection)
        notes += more
    return replace(series, snapshots=tuple(chosen), notes=tuple(notes))


def check_order(series: Series) -> None:
    """RequestError if some have a step and others none, so that their place is not known."""
    lacking = [s.path for s in series.snapshots if s.step is None and not s.is_end]
    if not 0 < len(lacking) < len(series):
        return
    others, own = (
        [os.path.basename(absolute(s.path)) for s in series.snapshots if (s.path in lacking) == off]
        for off in (True, False)
    )
    pattern = pattern_for(next(iter(members(own))), own, others)
    raise RequestError(
        f"No {series.unit} is known for {labels(lacking)}, and so not where it belongs among the"
        " others.",
        hint=(f"Leave it out with pattern='{pattern}', or give" if pattern else "Give")
        + " the checkpoints themselves, oldest first.",
    )


def _require(asked: int, found: Sequence[Snapshot], at_most: bool, what: str) -> None:
    if len(found) < asked and not at_most:
        raise RequestError(
            f"Asked for {what} {asked} checkpoints and found {len(found)}"
            + (f": {labels([snapshot.path for snapshot in found])}" if found else ""),
            hint="Take what there is with at_most=True." if found else None,
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
            f"No checkpoint has {with_article(str(series.unit))} {bounds}: they are {min(steps)} to"
            f" {max(steps)}."
        )
    return found


def _newest_first(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """By step; of equal steps, and where none are known, the later in the series first."""
    backwards = list(reversed(snapshots))
    if all(snapshot.step is not None or snapshot.is_end for snapshot in snapshots):
        backwards.sort(key=lambda s: float("-inf") if s.is_end else -(s.step or 0))
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


def _best(series: Series, count: int, selection: Selection) -> tuple[list[Snapshot], list[str]]:
    notes = []
    metric = selection.metric
    if metric is None:
        metric = _only_metric(series)
        notes.append(f"best by {metric}, the only metric there is")
    measured, mode = with_metric(replace(series, notes=()), metric, selection.mode)
    comparable = measured.snapshots
    _require(count, comparable, selection.at_most, f"the best (by {metric})")
    sign = 1 if mode == "min" else -1
    # Of equals the newer: it has trained longer.
    ranked = sorted(_newest_first(comparable), key=lambda s: sign * s.metrics[metric])[:count]
    return _those_in(comparable, ranked), [*notes, *measured.notes]


def with_metric(series: Series, metric: str, mode: str | None = None) -> tuple[Series, str]:
    """Those that have a metric that can be compared, with notes on the others; and whether ``min``
    or ``max`` is better, by its name unless ``mode`` says so. RequestError if none has it."""
    notes = [*series.notes]
    series = with_inner_metrics(series, metric)
    if metric not in series.metric_names:
        raise _unknown_metric(metric, series)
    mode = mode or guess_mode(metric)
    if mode is None:
        raise RequestError(
            f"Is lower or higher {metric} better? Its name does not say",
            hint="Give mode='min' or mode='max'.",
        )
    lacking = [s.path for s in series.snapshots if metric not in s.metrics]
    if lacking:
        notes.append(f"left out for want of {metric}: {labels(lacking)}")
    comparable = tuple(snapshot for snapshot in series.snapshots if finite(snapshot, metric))
    strange = [s.path for s in series.snapshots if metric in s.metrics and not finite(s, metric)]
    if strange:
        notes.append(f"left out, {metric} is NaN or infinite: {labels(strange)}")
    return replace(series, snapshots=comparable, notes=tuple(notes)), mode


def _only_metric(series: Series) -> str:
    names = series.metric_names or with_inner_metrics(series).metric_names
    if not names:
        raise RequestError(
            "best= needs a metric, and none is known for these checkpoints",
            hint=_where_from(series),
        )
    if len(names) > 1:
        raise RequestError(f"best= needs metric=: there are {', '.join(names)}")
    return names[0]


def _where_from(series: Series) -> str:
    """Where metrics may come from that are not known."""
    if series.unmeasured is not None:
        return f"{series.unmeasured}."
    return "Give a file of metrics with metrics_file=, or have them in the names: val_loss=0.25."


def _unknown_metric(metric: str, series: Series) -> RequestError:
    names = series.metric_names
    hint = f"There are: {', '.join(names)}." if names else _where_from(series)
    if question := did_you_mean(metric, names):
        hint = f"{question} {hint}"
    return RequestError(f"No checkpoint has {with_article(metric)} to go by", hint=hint)
