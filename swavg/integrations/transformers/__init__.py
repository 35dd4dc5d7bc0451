"""Callbacks for the Trainer of transformers: averages of the weights, and snapshots.

>>> from swavg.integrations.transformers import EMACallback, SnapshotCallback
>>> ema = EMACallback(decay=0.999)
>>> trainer = Trainer(model, args, train_dataset=..., eval_dataset=...)
>>> ema.attach(trainer)
>>> trainer.add_callback(SnapshotCallback("snapshots", every=1000, keep=5, ema=ema))
>>> trainer.train()
"""

from swavg.integrations.transformers.ema import EMACallback
from swavg.integrations.transformers.snapshots import SnapshotCallback
from swavg.integrations.transformers.swa import SWACallback

__all__ = ["EMACallback", "SWACallback", "SnapshotCallback"]
