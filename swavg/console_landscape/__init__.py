"""Surveys on a terminal: progress with the time left, coarse pictures in blocks, and figures."""

from swavg.console_landscape.chart import line_lines, line_picture, line_report
from swavg.console_landscape.picture import (
    distances_note,
    surface_lines,
    surface_picture,
    surface_report,
)
from swavg.console_landscape.run import dry_run, interrupted, progress_bar

__all__ = [
    "distances_note",
    "dry_run",
    "interrupted",
    "line_lines",
    "line_picture",
    "line_report",
    "progress_bar",
    "surface_lines",
    "surface_picture",
    "surface_report",
]
