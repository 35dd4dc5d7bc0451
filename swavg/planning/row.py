"""What every averaging method ends as: weights over an ordered list of checkpoints."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from swavg.errors import RequestError
from swavg.formats.tensors import Shared
from swavg.planning.policy import Policy
from swavg.short_repr import ShortRepr

Path = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, repr=False)
class Row(ShortRepr):
    """One output: weights over inputs. RequestError unless they are finite, and one to one."""

    weights: tuple[float, ...]
    members: tuple[int, ...]
    """Strictly ascending indices of the inputs that the weights belong to, one to one."""
    method: str | None = None
    """Recorded with the output; None: mean or weighted."""
    details: Mapping[str, object] = field(default_factory=dict)
    """Decay, step, ...: recorded too."""
    of_averages: bool = False
    """Some inputs are averages on purpose: they are continued, or taken apart."""
    copies: bool = False
    """The one input in another form: bytes as they are, NaN too, unless the dtype changes."""
    recorded: str | None = None
    """The recipe that is written, instead of that of this call."""
    name: str = "averaged"
    """What the output is called, before its suffix, where nobody names it."""
    older: bool = False
    """The recipe says no more than those of the first version."""

    def __post_init__(self) -> None:
        if not self.members or len(self.weights) != len(self.members):
            raise RequestError(
                f"A row has {len(self.weights)} weights and {len(self.members)} members."
            )
        if not all(map(math.isfinite, self.weights)):
            raise RequestError("A row has a weight that is not finite.")
        if self.copies and self.weights != (1.0,):
            raise RequestError("A row that copies has one member.")
        if self.members[0] < 0 or any(a >= b for a, b in pairwise(self.members)):
            raise RequestError("The members of a row are not ascending indices of inputs.")


@dataclass(frozen=True, slots=True, repr=False)
class Request(ShortRepr):
    """Rows over inputs: all that a method decides. Where the outputs go, others say."""

    inputs: tuple[str, ...]
    """Paths; ``members`` of the rows are indices into these."""
    rows: tuple[Row, ...]
    policy: Policy
    """The caller's, as far as the method does not need it otherwise."""
    notes: tuple[str, ...] = ()
    """What one may like to know of how the rows came about."""
    warnings: tuple[str, ...] = ()
    """What may make the results useless."""
    shared: Shared | None = field(default=None, repr=False)
    """What was read of the inputs on the way."""
