"""The framework's own base class, from whichever of its two packages is in use."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from swavg.errors import MissingDependencyError

if TYPE_CHECKING:
    from lightning.pytorch import Callback as Callback
else:

    def _callback() -> type:
        from importlib import import_module

        names = ["lightning.pytorch", "pytorch_lightning"]
        # What the user's own code has imported is what their Trainer is of.
        for name in sorted(names, key=lambda name: name not in sys.modules):
            try:
                return import_module(name).Callback
            except ModuleNotFoundError as error:
                if error.name not in (name, name.partition(".")[0]):
                    raise
        raise MissingDependencyError(
            "swavg.integrations.lightning needs Lightning.", hint="pip install lightning"
        )

    Callback = _callback()
