"""What ``swavg bn`` shows at its end: what was recomputed, and how far the statistics moved."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from swavg.console.messages import notes
from swavg.console.page import Page
from swavg.console.text import counted, printable

if TYPE_CHECKING:
    from swavg.evaluation.recalibrate import Recalibration
    from swavg.evaluation.statistics_shift import Quantiles


def summary(done: Recalibration) -> None:
    """Notes, what was recomputed on what, and how far it moved, on stderr."""
    notes(done.notes)
    seen = counted(done.batches, "batch", "batches")
    if done.examples is not None:
        seen += f" ({counted(done.examples, 'example')})"
    page = Page(sys.stderr)
    text = f" the statistics of {counted(done.layers, 'batch-norm layer')} of"
    text += f" {printable(done.input)} on {seen} in {done.seconds:.2f} s"
    hang = len("recomputed ")
    page.line(("recomputed", "green"), text, wrap=True, hang=hang)
    parts = []
    if done.moved.variance is not None:
        parts.append(f"variances are {_spread(done.moved.variance)} times what they were")
    if done.moved.mean is not None:
        parts.append(f"means moved by {_spread(done.moved.mean)} standard deviations")
    if parts:
        text = f"{'':{hang}}{'; '.join(parts)} (median; 5 to 95 % of channels)"
        page.line(text, wrap=True, hang=hang)


def _spread(quantiles: Quantiles) -> str:
    low, median, high = quantiles
    return f"{median:.3g} ({low:.3g} to {high:.3g})"
