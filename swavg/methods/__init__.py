"""Averaging methods over a series: each decides weights and what is recorded, nothing more.

Every function returns jobs that have decided everything and written nothing; ``job.run()`` or
``swavg.job.run_together(jobs)`` does them.
"""

from swavg.methods.emas import ema
from swavg.methods.means import slide, update, window
from swavg.methods.smooth import Smoothing, amount, smoothing
from swavg.methods.sweeps import SweepRecipe, sweep, sweep_recipe
from swavg.methods.widths import posthoc

__all__ = [
    "Smoothing",
    "SweepRecipe",
    "amount",
    "ema",
    "posthoc",
    "slide",
    "smoothing",
    "sweep",
    "sweep_recipe",
    "update",
    "window",
]
