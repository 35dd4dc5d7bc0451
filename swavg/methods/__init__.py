"""Averaging methods over a series: each turns a request into rows of weights, nothing more.

Every function opens what it needs to know (recipes of earlier averages) and returns a
:class:`Request`, which the engine plans and runs.
"""

from swavg.methods.convert import convert
from swavg.methods.emas import ema
from swavg.methods.means import slide, update, window
from swavg.methods.schedules import anneal, bema, by_metric
from swavg.methods.smooth import Smoothing, amount, counts_steps, smoothing
from swavg.methods.sweeps import SweepSpec, sweep, sweep_spec
from swavg.methods.widths import posthoc
from swavg.planning.row import Request

__all__ = [
    "Request",
    "Smoothing",
    "SweepSpec",
    "amount",
    "anneal",
    "bema",
    "by_metric",
    "convert",
    "counts_steps",
    "ema",
    "posthoc",
    "slide",
    "smoothing",
    "sweep",
    "sweep_spec",
    "update",
    "window",
]
