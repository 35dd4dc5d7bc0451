"""Callbacks for Lightning: averages of the weights, and snapshots for the command line.

    >>> from swavg.integrations.lightning import EMACallback, SnapshotCallback
    >>> ema = EMACallback(decay=0.999)
    >>> keeping = SnapshotCallback("snapshots", every=1000, keep=5, ema=ema)
    >>> Trainer(callbacks=[ema, keeping])

For ``lightning`` and for ``pytorch_lightning``: with both installed, for that which was imported
first.
"""

from swavg.integrations.lightning.ema import EMACallback
from swavg.integrations.lightning.snapshots import SnapshotCallback
from swavg.integrations.lightning.swa import SWACallback

__all__ = ["EMACallback", "SWACallback", "SnapshotCallback"]
