"""Choosing checkpoints from a run: the options that commands share, and what they choose."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from swavg.series import Series


@dataclass(frozen=True, slots=True)
class Choosing:
    """The values of the choosing options; those of ``swavg.series.discover`` and ``select``."""

    pattern: str | None = None
    last: int | None = None
    from_step: int | None = None
    to_step: int | None = None
    every: int | None = None
    best: int | None = None
    metric: str | None = None
    mode: str | None = None
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


_COUNT = click.IntRange(min=1)

_OPTIONS = (
    click.option("--pattern", metavar="GLOB", help="Take only these names in folders."),
    click.option("--last", type=_COUNT, metavar="N", help="The N newest."),
    click.option("--from-step", type=int, metavar="A", help="From this step on."),
    click.option("--to-step", type=int, metavar="B", help="Up to this step."),
    click.option(
        "--every", type=_COUNT, metavar="N", help="At least N steps apart, from the newest back."
    ),
    click.option("--best", type=_COUNT, metavar="K", help="The K best by --metric."),
    click.option("--metric", metavar="NAME", help="What --best goes by, such as val_loss."),
    click.option(
        "--mode",
        type=click.Choice(["min", "max"]),
        help="Whether the lowest or the highest is best. [default: by the metric's name]",
    ),
    click.option(
        "--metrics",
        "metrics_file",
        metavar="FILE",
        help="Metrics by step, epoch or path: CSV with a header, or JSON lines.",
    ),
    click.option("--at-most", is_flag=True, help="Take fewer than asked for if there are fewer."),
    click.option("--keep-order", is_flag=True, help="Leave the order given; do not go by step."),
)


def choosing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as one argument, ``choosing``."""
    names = [entry.name for entry in fields(Choosing)]

    @functools.wraps(command)
    def bundled(**values: Any) -> Any:
        choosing = Choosing(**{name: values.pop(name) for name in names})
        return command(choosing=choosing, **values)

    decorated: Callable[..., Any] = bundled
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def find(paths: Sequence[str], choosing: Choosing) -> Series:
    """All that ``paths`` name, before any of it is chosen."""
    from swavg.series import discover

    return discover(
        paths,
        pattern=choosing.pattern,
        keep_order=choosing.keep_order,
        metrics_file=choosing.metrics_file,
    )


def choose(paths: Sequence[str], choosing: Choosing) -> Series:
    """The checkpoints that ``paths`` and the options choose, in order.

    Where nothing is to be chosen among plain checkpoints, only their names are read, and they are
    left in the order given unless all names have a step. Raises RequestError, InputError, or
    UsageError.
    """
    from swavg.series import in_given_order

    if choosing.best is None and (choosing.metric or choosing.metrics_file):
        raise click.UsageError("--metric and --metrics say what is best; add --best K.")
    if choosing.by_position:
        plain = in_given_order(paths, keep_order=choosing.keep_order)
        if plain is not None:
            return plain
    series = find(paths, choosing)
    return pick(series, choosing) if choosing.selects else series


def pick(series: Series, choosing: Choosing) -> Series:
    """What the options choose of ``series``."""
    from swavg.series import Selection, select

    names = [entry.name for entry in fields(Selection)]
    return select(series, Selection(**{name: getattr(choosing, name) for name in names}))
