"""Who computes: threads of this process, or processes forked from it.

Python runs one thread at a time between NumPy calls, which costs threads much of a second
processor; processes do not share that lock.
"""

from typing import TYPE_CHECKING, Any

from swavg.crew.base import Crew, Slot, room, views
from swavg.crew.processes import Processes, can_fork

if TYPE_CHECKING:
    from swavg.crew.threads import Threads as Threads

__all__ = ["Crew", "Processes", "Slot", "Threads", "can_fork", "room", "views"]


def __getattr__(name: str) -> Any:
    # What its pool of threads brings along is felt in the start of every run.
    if name != "Threads":
        raise AttributeError(f"module 'swavg.crew' has no attribute '{name}'")
    from swavg.crew.threads import Threads

    return Threads
