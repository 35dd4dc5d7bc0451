"""Averages in the loop of Keras 3 and TensorFlow, and callbacks for ``model.fit``.

    >>> from swavg.integrations.keras import EMACallback, SnapshotCallback
    >>> ema = EMACallback(decay=0.999)
    >>> model.fit(data, callbacks=[ema, SnapshotCallback("snapshots", ema=ema)])

``EMA`` and ``SWA`` are for loops of one's own, over a model or any list of variables. With the
TensorFlow backend they work eagerly and in a ``tf.function``; with others, eagerly.
"""

from swavg.integrations.keras.callbacks import EMACallback, SWACallback
from swavg.integrations.keras.ema import EMA
from swavg.integrations.keras.snapshots import SnapshotCallback
from swavg.integrations.keras.swa import SWA

__all__ = ["EMA", "SWA", "EMACallback", "SWACallback", "SnapshotCallback"]
