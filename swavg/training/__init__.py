"""The training side: averages kept while a model trains, and snapshots that the command line reads.

    >>> from swavg.training import EMA, save_snapshot
    >>> ema = EMA(model, decay=0.999)
    >>> ema.update()  # after each optimizer step
    >>> with ema.applied():
    ...     evaluate(model)
    >>> save_snapshot("step-1000.safetensors", model, step=1000, metrics={"val_loss": 0.12})

Needs PyTorch (``pip install torch``). Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swavg.training.apply import apply_swa as apply_swa
    from swavg.training.batchnorm import update_bn as update_bn
    from swavg.training.ema import EMA as EMA
    from swavg.training.power import PowerEMA as PowerEMA
    from swavg.training.schedule import SWASchedule as SWASchedule
    from swavg.training.snapshot import save_snapshot as save_snapshot
    from swavg.training.snapshots import Snapshots as Snapshots
    from swavg.training.swa import SWA as SWA

_HOMES = {
    "EMA": "swavg.training.ema",
    "PowerEMA": "swavg.training.power",
    "SWA": "swavg.training.swa",
    "SWASchedule": "swavg.training.schedule",
    "apply_swa": "swavg.training.apply",
    "recalibrate": "swavg.evaluation.recalibrate",
    "save_snapshot": "swavg.training.snapshot",
    "Snapshots": "swavg.training.snapshots",
    "update_bn": "swavg.training.batchnorm",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'swavg.training' has no attribute '{name}'")
    from importlib import import_module

    try:
        home = import_module(_HOMES[name])
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        from swavg.errors import MissingDependencyError

        raise MissingDependencyError(
            "swavg.training needs PyTorch.",
            hint="pip install torch; for models of Keras there is swavg.integrations.keras.",
        ) from None
    value = getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
