"""Choosing checkpoints from a run: the options that commands share, and what they choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

import click

from swavg.cli.errors import with_options
from swavg.cli.options import Option, filled
from swavg.cli.values import COUNT

if TYPE_CHECKING:
    from swavg.series import Series


@dataclass(frozen=True, slots=True)
class Selection:
    """What is chosen of a series; the arguments of ``swavg.series.discover`` and ``select``."""

    pattern: str | None = None
    last: int | None = None
    from_step: int | None = None
    to_step: int | None = None
    every: int | None = None
    best: int | None = None
    metric: str | None = None
    mode: Literal["min", "max"] | None = None
    metrics_file: str | None = None
    at_most: bool = False
    keep_order: bool = False

    @property
    def selects(self) -> bool:
        """Whether any of a series would be left out."""
        chosen = (self.last, self.from_step, self.to_step, self.every, self.best, self.mode)
        return any(value is not None for value in chosen)

    @property
    def by_position(self) -> bool:
        """Whether the paths are taken as they are, but for their order."""
        others = (self.pattern, self.metric, self.metrics_file)
        return not self.selects and all(value is None for value in others)


_OPTIONS = (
    Option("pattern", "--pattern", "Take only these names in folders.", "GLOB"),
    Option("last", "--last", "The N newest checkpoints.", "N", COUNT, daily=True),
    Option("from_step", "--from-step", "From this step on.", "A", daily=True),
    Option("to_step", "--to-step", "Up to this step.", "B"),
    Option("every", "--every", "At least N steps apart, from the newest back.", "N", COUNT),
    Option("best", "--best", "The K best checkpoints by --metric.", "K", COUNT, daily=True),
    Option("metric", "--metric", "What --best goes by, such as val_loss.", "NAME", daily=True),
    Option("mode", "--mode",
           "Whether the lowest or the highest is best. [default: by the metric's name]"),
    Option("metrics_file", "--metrics",
           "Metrics by step, epoch or path: CSV with a header, or JSON lines.", "FILE",
           click.Path()),
    Option("at_most", "--at-most", "Take fewer than asked for if there are fewer."),
    Option("keep_order", "--keep-order", "Leave the order given; do not go by step."),
)  # fmt: skip

_HEADING = "Choosing checkpoints"
selection_options = filled("selection", Selection, {_HEADING: _OPTIONS})

_RECORDED = {"best": "--best", "metric": "--best-by", "mode": "--best-mode"}
# For commands that measure: there --metric and --mode are of what they find.
recorded_selection_options = filled(
    "selection",
    Selection,
    {
        _HEADING: [
            replace(
                option,
                names=_RECORDED[option.field],
                help=option.help.replace("--metric", "--best-by"),
            )
            if option.field in _RECORDED
            else option
            for option in _OPTIONS
        ]
    },
)


def discover(paths: Sequence[str], selection: Selection, *, choosing: bool = False) -> Series:
    """All that ``paths`` name, before any of it is chosen; ``choosing`` if it is later."""
    from swavg import series

    return series.discover(
        paths,
        pattern=selection.pattern,
        keep_order=selection.keep_order,
        metrics_file=selection.metrics_file,
        choosing=choosing or selection.selects,
    )


def select(series: Series, selection: Selection) -> Series:
    """What the options choose of ``series``."""
    from swavg.series import Selection as Chosen
    from swavg.series import select

    names = [field.name for field in fields(Chosen)]
    return select(series, Chosen(**{name: getattr(selection, name) for name in names}))


def selected(
    paths: Sequence[str],
    selection: Selection,
    *,
    one_for_each_step: bool = True,
    in_order: bool = False,
    steps: bool = False,
    choosing: bool = False,
    measured: bool = False,
) -> Series:
    """The checkpoints that ``paths`` and the options choose, in order.

    Where nothing is to be chosen among plain checkpoints, only their names are read, and they are
    left in the order given unless all names have a step; with ``steps`` they are opened if some
    have none. ``choosing``: some are chosen later; ``measured``: their metrics count. Raises
    RequestError, InputError, or UsageError; so it does for different files of one step in a folder,
    unless they are averages of several widths, and with ``in_order`` where the place of some is not
    known.
    """
    from swavg.series import check_equal_steps, check_order, in_given_order

    unused = selection.metric or (selection.metrics_file and not measured)
    if selection.best is None and unused:
        context = click.get_current_context(silent=True)
        params = [] if context is None else context.command.params
        text = "metric= and metrics_file= say what is best; add best=K."
        raise click.UsageError(with_options(text, params))
    if selection.by_position and not measured and not (choosing and len(paths) == 1):
        plain = in_given_order(paths, keep_order=selection.keep_order)
        if plain is not None and not (steps and None in plain.steps):
            return plain
    series = discover(paths, selection, choosing=choosing)
    chosen = select(series, selection) if selection.selects else series
    if one_for_each_step:
        check_equal_steps(chosen)
    if in_order and not selection.keep_order:
        check_order(chosen)
    return chosen
