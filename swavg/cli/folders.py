"""Where several outputs go: names in a folder, with the suffix of the inputs."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click


def outputs_in(folder: str, names: Sequence[str], first: str) -> list[str]:
    """A path in ``folder`` per name, with the suffix of the checkpoint ``first``.

    Raises UsageError for names that are not distinct.
    """
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise click.UsageError(f"Two outputs would be called '{twice}'.")
    from swavg.planning.targets import suffix_of

    suffix = "" if os.path.isdir(first) else suffix_of(first)
    return [os.path.join(folder, f"{name}{suffix}") for name in names]
