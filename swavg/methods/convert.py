"""A checkpoint in another format."""

from __future__ import annotations

import os

from swavg.formats.composite import as_composite
from swavg.formats.parts import check_one_checkpoint
from swavg.planning.policy import Policy
from swavg.planning.row import Path, Request, Row
from swavg.planning.targets import suffix_of


def convert(checkpoint: Path, *, policy: Policy | None = None) -> Request:
    """All of ``checkpoint`` as it is: bytes of tensors unchanged (NaN and codes too) but for floats
    that ``policy.dtype`` changes, and its own record if it is an average. InputError for a folder
    of several."""
    if (composite := as_composite(os.fspath(checkpoint))) is not None:
        check_one_checkpoint(composite)
    file = os.path.basename(os.path.abspath(checkpoint))
    row = Row((1.0,), (0,), "copy", copies=True, name=file.removesuffix(suffix_of(file)))
    return Request((os.fspath(checkpoint),), (row,), Policy() if policy is None else policy)
