"""What people see of ``inspect`` and ``diff``: tables and trees on standard output."""

from swavg.console_looking.comparison import show_comparison
from swavg.console_looking.inspection import show_inspection
from swavg.console_looking.page import progress_bar

__all__ = ["progress_bar", "show_comparison", "show_inspection"]
