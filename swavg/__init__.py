"""swavg averages checkpoints: streamed weighted sums in constant memory.

    >>> import swavg
    >>> swavg.average(["a.safetensors", "b.safetensors"], output="c.safetensors")
    >>> swavg.open_checkpoint("c.safetensors")["head.weight"][:2]

Names are imported when they are first used, so that ``import swavg`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from swavg.engine.average import average as average
    from swavg.engine.average import execute as execute
    from swavg.engine.average import prepare as prepare
    from swavg.engine.report import Report as Report
    from swavg.engine.resources import Resources as Resources
    from swavg.errors import InputError as InputError
    from swavg.errors import MismatchError as MismatchError
    from swavg.errors import MissingDependencyError as MissingDependencyError
    from swavg.errors import NumericsError as NumericsError
    from swavg.errors import OutputError as OutputError
    from swavg.errors import OutputExistsError as OutputExistsError
    from swavg.errors import RequestError as RequestError
    from swavg.errors import SwavgError as SwavgError
    from swavg.formats import open_checkpoint as open_checkpoint
    from swavg.planning.plan import Plan as Plan
    from swavg.planning.policy import Policy as Policy
    from swavg.planning.row import Row as Row

_HOMES = {
    "average": "swavg.engine.average",
    "prepare": "swavg.engine.average",
    "execute": "swavg.engine.average",
    "Plan": "swavg.planning.plan",
    "Row": "swavg.planning.row",
    "Report": "swavg.engine.report",
    "open_checkpoint": "swavg.formats",
    "Policy": "swavg.planning.policy",
    "Resources": "swavg.engine.resources",
    "SwavgError": "swavg.errors",
    "RequestError": "swavg.errors",
    "MissingDependencyError": "swavg.errors",
    "MismatchError": "swavg.errors",
    "InputError": "swavg.errors",
    "OutputError": "swavg.errors",
    "OutputExistsError": "swavg.errors",
    "NumericsError": "swavg.errors",
}

__all__ = [
    "InputError",
    "MismatchError",
    "MissingDependencyError",
    "NumericsError",
    "OutputError",
    "OutputExistsError",
    "Plan",
    "Policy",
    "Report",
    "RequestError",
    "Resources",
    "Row",
    "SwavgError",
    "__version__",
    "average",
    "execute",
    "open_checkpoint",
    "prepare",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'swavg' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
