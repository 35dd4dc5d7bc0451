"""What was averaged and how, as metadata of the output.

The same call gives the same text: no time stamps, no absolute paths, nothing about the machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from swavg import __version__
from swavg.formats import open_checkpoint
from swavg.formats.base import Checkpoint
from swavg.policy import Policy
from swavg.weights import is_uniform


def short_names(paths: Sequence[str]) -> tuple[str, ...]:
    """The shortest trailing parts of the paths that tell them apart (``run1/model.pt``)."""
    parts = [os.path.abspath(path).split(os.sep) for path in paths]
    distinct = {tuple(part) for part in parts}
    for length in range(1, max(map(len, parts), default=1) + 1):
        if len({part[-length:] for part in distinct}) == len(distinct):
            return tuple("/".join(part[-length:]) for part in parts)
    return tuple(paths)


def recipe(
    inputs: Sequence[str],
    weights: Sequence[float],
    policy: Policy,
    method: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The recipe as plain values: method with its ``details``, inputs with their weights, options
    that are not the default, and swavg's version. A mean says of how many (``n``)."""
    options = {
        entry.name: getattr(policy, entry.name)
        for entry in fields(policy)
        if getattr(policy, entry.name) != entry.default
    }
    mean = is_uniform(weights)
    return {
        "method": method or ("mean" if mean else "weighted"),
        **({"n": len(weights)} if mean and method is None else {}),
        **(details or {}),
        "inputs": list(inputs),
        "weights": list(weights),
        "options": options,
        "version": __version__,
    }


def recipe_of(path: str | os.PathLike[str], key: str | None = None) -> dict[str, Any]:
    """The recipe that swavg recorded in a checkpoint; empty if there is none. ``key`` as in
    :class:`swavg.policy.Policy`."""
    return recorded_in(open_checkpoint(path, key=key), key)


def recorded_in(checkpoint: Checkpoint, key: str | None = None) -> dict[str, Any]:
    """The recipe that swavg recorded in an open checkpoint; empty if there is none."""
    text = checkpoint.metadata.get("swavg")
    if text is None and checkpoint.format == "folder" and checkpoint.files[0].path.endswith(".bin"):
        return recipe_of(checkpoint.files[0].path, key)
    if text is None and checkpoint.format == "torch":
        from swavg.formats.torch_zip import recorded_recipe

        text = recorded_recipe(checkpoint)
    try:
        found = json.loads(text) if text is not None else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def as_text(value: dict[str, Any]) -> str:
    """One line of JSON."""
    text = json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
    # A file name need not be UTF-8; the metadata must be.
    return text.encode(errors="backslashreplace").decode()
