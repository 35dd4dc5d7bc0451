"""What a method asks of the engine."""

from __future__ import annotations

import os
from dataclasses import dataclass

from swavg.planning.row import Row
from swavg.planning.policy import Policy

Path = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Request:
    """Rows over inputs: all that a method decides. Where the outputs go, others say."""

    inputs: tuple[str, ...]
    """Paths; ``members`` of the rows are indices into these."""
    rows: tuple[Row, ...]
    policy: Policy
    """The caller's, as far as the method does not need it otherwise."""
    notes: tuple[str, ...] = ()
    """What one may like to know of how the rows came about."""
