"""Series: which checkpoints, in which order, with which steps and metrics."""

from swavg.series.discover import discover, given
from swavg.series.metrics import with_inner_metrics
from swavg.series.model import Series, Snapshot, Unit
from swavg.series.select import guess_mode, select

__all__ = [
    "Series",
    "Snapshot",
    "Unit",
    "discover",
    "given",
    "guess_mode",
    "select",
    "with_inner_metrics",
]
