"""The training side: averages kept while a model trains, and snapshots that the command line reads.

    >>> from swavg.training import EMA, save_snapshot
    >>> ema = EMA(model, decay=0.999)
    >>> ema.update()  # after each optimizer step
    >>> with ema.applied():
    ...     evaluate(model)
    >>> save_snapshot("step-1000.safetensors", model, step=1000, metrics={"val_loss": 0.12})

Needs PyTorch (``pip install torch``).
"""

from importlib import import_module
from typing import Any

from swavg.errors import MissingDependencyError

try:
    from swavg.training.apply import apply_swa
    from swavg.training.batchnorm import update_bn
    from swavg.training.ema import EMA
    from swavg.training.power import PowerEMA
    from swavg.training.schedule import SWASchedule
    from swavg.training.snapshot import save_snapshot
    from swavg.training.snapshots import Snapshots
    from swavg.training.swa import SWA
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependencyError(
        "swavg.training needs PyTorch.",
        hint="pip install torch; for models of Keras there is swavg.integrations.keras.",
    ) from None

__all__ = [
    "EMA", "SWA", "PowerEMA", "SWASchedule", "Snapshots", "apply_swa", "save_snapshot", "update_bn",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "recalibrate":
        # Of a room above this one, which is built upon it.
        return import_module("swavg.evaluation.recalibrate").recalibrate
    raise AttributeError(f"module 'swavg.training' has no attribute '{name}'")
