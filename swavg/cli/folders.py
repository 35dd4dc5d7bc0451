"""Where several outputs go: names in a folder, with the suffix of their format."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from swavg.planning.policy import Policy


def outputs_in(folder: str, names: Sequence[str], first: str, policy: Policy) -> list[str]:
    """A path in ``folder`` per name, with the suffix that an output like the checkpoint ``first``
    has.

    Raises UsageError for names that are not distinct.
    """
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise click.UsageError(f"Two outputs would be called '{twice}'.")
    from swavg.formats import format_name
    from swavg.planning.targets import default_suffix

    suffix = default_suffix(first, format_name(first), policy)
    return [os.path.join(folder, f"{name}{suffix}") for name in names]
