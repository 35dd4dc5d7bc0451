"""Who computes: threads of this process, or processes forked from it.

Python runs one thread at a time between NumPy calls, which costs threads much of a second
processor; processes do not share that lock.
"""

from swavg.crew.base import Crew, Slot, room, views
from swavg.crew.processes import Processes, can_fork
from swavg.crew.threads import Threads

__all__ = ["Crew", "Processes", "Slot", "Threads", "can_fork", "room", "views"]
