"""Many averages of one series."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from swavg import weights
from swavg.errors import RequestError
from swavg.methods.smooth import counts_steps, last_step, smoothing
from swavg.planning.policy import Policy
from swavg.planning.row import Request, Row
from swavg.series import Selection, Series, select

_COUNTS = ("last", "from-step", "to-step", "every", "best")
_SELECTING = (*_COUNTS, "metric", "mode")
_SMOOTHING = ("decay", "half-life", "span", "warmup")
_FLAGS = ("debias", "per-step", "at-most")
_OF_EMA = (*_SELECTING, *_SMOOTHING, *_FLAGS)


@dataclass(frozen=True, slots=True)
class SweepSpec:
    """One average of a sweep."""

    text: str
    """As it was written: ``uniform:last=5``, ``ema:half-life=2000steps,to-step=9000``."""
    selection: Selection
    ema: Mapping[str, str] | None
    """Options of the EMA (a flag is empty); None: the mean."""

    @property
    def selects(self) -> bool:
        """Whether it is of some of the series only."""
        return self.selection != Selection(metric=self.selection.metric)

    @property
    def counts_steps(self) -> bool:
        """Whether it needs the steps of the checkpoints."""
        chosen = self.selection
        ema = self.ema or {}
        return (chosen.from_step, chosen.to_step, chosen.every) != (None, None, None) or (
            counts_steps(ema.get("half-life"), ema.get("span"), per_step="per-step" in ema)
        )

    @property
    def name(self) -> str:
        """A file name that says what it is: ``uniform-last-5``."""
        return re.sub(r"[^A-Za-z0-9._]+", "-", self.text).strip("-")


def sweep_spec(text: str) -> SweepSpec:
    """Parse one average of a sweep. Raises RequestError, naming what can be said."""
    method, _, rest = text.partition(":")
    if method not in ("uniform", "ema"):
        raise RequestError(
            f"Recipe '{text}': there is no method '{method}'.",
            hint="Write uniform:last=5 or ema:half-life=2000steps.",
        )
    options: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        key = key.strip()
        if key in _FLAGS and not equals:
            options[key] = ""
        elif equals and (key in _SELECTING or (method == "ema" and key in _SMOOTHING)):
            options[key] = value.strip()
        else:
            taken = (*_SELECTING, "at-most") if method == "uniform" else _OF_EMA
            raise RequestError(
                f"Recipe '{text}': '{part}' is not understood.",
                hint=f"A {method} recipe takes {', '.join(taken)}.",
            )
    with _naming(text):
        counts = {key.replace("-", "_"): _whole(options, key) for key in _COUNTS}
        selection = Selection(
            **counts,
            metric=options.get("metric"),
            mode=options.get("mode"),
            at_most="at-most" in options,
        )
    return SweepSpec(text, selection, options if method == "ema" else None)


def sweep(series: Series, specs: Sequence[SweepSpec], *, policy: Policy) -> Request:
    """Many averages of one series, one row each, for one read of the inputs.

    Raises RequestError, naming the average that cannot be made.
    """
    rows = []
    for spec in specs:
        with _naming(spec.text):
            rows.append(_row(series, spec))
    used = sorted({member for row in rows for member in row.members})
    places = {member: place for place, member in enumerate(used)}
    return Request(
        tuple(series.paths[member] for member in used),
        tuple(
            Row(row.weights, tuple(map(places.__getitem__, row.members)), row.method, row.details)
            for row in rows
        ),
        policy,
        shared=series.shared,
    )


def _row(series: Series, spec: SweepSpec) -> Row:
    chosen = select(series, spec.selection)
    # What is chosen is in the order of the series; of a path that is there twice, each counts.
    places = iter(enumerate(series.paths))
    members = tuple(next(i for i, path in places if path == wanted) for wanted in chosen.paths)
    steps = chosen.steps
    if spec.ema is None:
        return Row(weights.mean(len(steps)), members, "mean", {"n": len(steps), **last_step(steps)})
    how = smoothing(
        steps,
        decay=_number(spec.ema, "decay"),
        half_life=spec.ema.get("half-life"),
        span=spec.ema.get("span"),
        per_step="per-step" in spec.ema,
        debias="debias" in spec.ema,
        warmup=spec.ema.get("warmup"),
        counting=chosen.unit,
    )
    return Row(how.weights_at(steps), members, "ema", how.details(steps, len(steps)))


@contextmanager
def _naming(text: str) -> Iterator[None]:
    """Errors in the block say of which average they are."""
    try:
        yield
    except RequestError as error:
        # A recipe is text: half-life, where the library has half_life=.
        said, hint = (
            given and re.sub(r"\b(\w+)=(?!\w)", lambda word: word[1].replace("_", "-"), given)
            for given in (error.message, error.hint)
        )
        raise RequestError(f"Recipe '{text}': {said}", hint=hint) from None


def _whole(options: Mapping[str, str], key: str) -> int | None:
    try:
        return int(options[key]) if key in options else None
    except ValueError:
        raise RequestError(f"'{key}={options[key]}' is no whole number.") from None


def _number(options: Mapping[str, str], key: str) -> float | None:
    try:
        return float(options[key]) if key in options else None
    except ValueError:
        raise RequestError(f"'{key}={options[key]}' is no number.") from None
