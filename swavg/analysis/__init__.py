"""What a checkpoint holds, and in what two differ. Nothing is changed or executed.

Statistics and distances are streamed: chunks of a bounded size, whatever the size of a tensor,
computed in float64 and combined in order.
"""

from swavg.analysis.ancestry import Ancestor, ancestry
from swavg.analysis.comparison import Comparison, Mismatch, diff
from swavg.analysis.figures import Distance, Statistics
from swavg.analysis.inspection import Entry, Folder, Inspection, Pickled, Shard, Total, inspect

__all__ = [
    "Ancestor",
    "Comparison",
    "Distance",
    "Entry",
    "Folder",
    "Inspection",
    "Mismatch",
    "Pickled",
    "Shard",
    "Statistics",
    "Total",
    "ancestry",
    "diff",
    "inspect",
]
