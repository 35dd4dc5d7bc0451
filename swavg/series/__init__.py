"""Series: which checkpoints, in which order, with which steps and metrics."""

from swavg.series.discover import discover, in_given_order
from swavg.series.equal_steps import check_equal_steps
from swavg.series.metrics import with_inner_metrics
from swavg.series.model import Series, Snapshot, Unit
from swavg.series.select import Selection, check_order, guess_mode, select, with_metric

__all__ = [
    "Selection",
    "Series",
    "Snapshot",
    "Unit",
    "check_equal_steps",
    "check_order",
    "discover",
    "guess_mode",
    "in_given_order",
    "select",
    "with_inner_metrics",
    "with_metric",
]
