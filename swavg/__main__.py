"""``python -m swavg``."""

from swavg.cli import main

main()
